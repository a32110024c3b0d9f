"""What a training step costs, and how that compares with a plain implementation.

    pip install -r tests/benchmarks/requirements.txt
    python tests/benchmarks/training.py --data data/widerface
    python tests/benchmarks/training.py --data DIR --frame 768 --batch-size 8 --threads 2

Both implementations take the same steps on the same batches, in turns: the repository's own, and
`plain_step.py` beside this file (generator on the whole frame, matching, mining and suppression
image by image, inner step by the package `higher`). Memory is measured in a process of its own
for each. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import psutil
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models import generator_training, objectives  # noqa: E402
from models.generator import BlurGenerator  # noqa: E402
from models.generator_training import GeneratorTraining, Prepared  # noqa: E402
from models.training_loop import Timer  # noqa: E402
from models.training_setup import generator_samples  # noqa: E402
from models.weights import DETECTOR, GENERATOR, load_retinaface, load_weights  # noqa: E402
from tests.benchmarks.plain_step import plain_adversary_step, plain_generator_step  # noqa: E402
from utils.config import load_config  # noqa: E402
from utils.device import pick_device  # noqa: E402
from utils.face_dataset import GeneratorBatch, labelled_source, run_loader  # noqa: E402
from utils.provenance import provenance  # noqa: E402
from utils.sampling import BatchOrder, Pass  # noqa: E402
from utils.widerface import find_labels  # noqa: E402

GENERATOR_PASS, ADVERSARY_PASS = Pass("generator", 0, 0, 0), Pass("adversary", 0, 0, 0)
Step = Callable[[GeneratorBatch], Any]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "widerface")
    parser.add_argument("--critic", type=Path, default=DETECTOR)
    parser.add_argument("--frame", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="measured, after two to warm up")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--memory-of", choices=["ours", "plain"], help=argparse.SUPPRESS)
    return parser.parse_args()


def training_of(
    name: str, config: dict[str, Any], critic: Path, device: torch.device
) -> GeneratorTraining:
    """The generator that ships with a critic and a fresh adversary, for one implementation."""
    generator = BlurGenerator()
    load_weights(generator, GENERATOR)
    training = GeneratorTraining(generator, load_retinaface(critic), config, device, False)
    if name == "plain":
        training.generator.to(memory_format=torch.contiguous_format)
    return training


def steps_of(name: str, training: GeneratorTraining) -> tuple[Step, Step]:
    """The generator step and the adversary step of one implementation."""
    if name == "ours":
        return (
            lambda batch: training.step(GENERATOR_PASS, batch, still=False),
            lambda batch: training.step(ADVERSARY_PASS, batch),
        )

    def boxes(batch: GeneratorBatch) -> list[Any]:
        pairs = zip(batch.boxes.cpu(), batch.present.cpu(), strict=True)
        return [rows[keep].double().numpy() for rows, keep in pairs]

    def generator_step(batch: GeneratorBatch) -> None:
        plain_generator_step(
            training.generator,
            training.critic,
            training.adversary,
            training.generator_optimizer,
            training.phase_b_optimizer,
            batch.images.float(),
            batch.blurred.float(),
            boxes(batch),
            training.config,
        )

    def adversary_step(batch: GeneratorBatch) -> None:
        plain_adversary_step(
            training.generator,
            training.adversary,
            training.phase_b_optimizer,
            batch.blurred.float(),
            boxes(batch),
            training.config,
        )

    def both(batch: GeneratorBatch) -> None:
        generator_step(batch)
        adversary_step(batch)

    return both, adversary_step


def timed(step: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of one call, to the end of what it set off on the device."""
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) * 1000


PARTS = (
    ("pseudo-labels", generator_training, "pseudo_labels"),
    ("generator on tiles", generator_training, "redraw_tiles"),
    ("objectives, forward", generator_training, "generator_objectives"),
    ("of these L_cycl with its inner step", objectives, "_across_training"),
    ("optimizers", generator_training, "advance"),
)


def shares_of_parts(
    training: GeneratorTraining, batches: list[GeneratorBatch], device: torch.device
) -> dict[str, float]:
    """Share of a generator step's time in each part; the backward pass is what is left."""
    spent = dict.fromkeys((name for name, _, _ in PARTS), 0.0)

    def measured(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            results: list[Any] = []
            spent[name] += timed(lambda: results.append(function(*arguments, **options)), device)
            return results[0]

        return call

    originals = [(module, attribute, getattr(module, attribute)) for _, module, attribute in PARTS]
    for name, module, attribute in PARTS:
        setattr(module, attribute, measured(name, getattr(module, attribute)))
    total = 0.0
    try:
        for batch in batches:
            prepared = Prepared.of(batch)
            total += timed(lambda: training._generator_step(batch, prepared, still=False), device)  # noqa: B023
    finally:
        for module, attribute, function in originals:
            setattr(module, attribute, function)
    top = sum(value for name, value in spent.items() if not name.startswith("of these"))
    return {**{name: value / total for name, value in spent.items()}, "backward": 1 - top / total}


def peak_megabytes(device: torch.device) -> float:
    """The most memory that was in use: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would report the parent's peak where that is higher
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) / 1e3
    return psutil.Process().memory_info().peak_wset / 1e6  # Windows


def memory_of(name: str, arguments: argparse.Namespace) -> float:
    """Peak memory of one implementation, in megabytes, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd())
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    arguments = parse_arguments()
    cv2.setNumThreads(1)
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False
    device = pick_device(arguments.device)
    frame, batch_size = arguments.frame, arguments.batch_size
    overrides = [f"train_generator.frame={frame}", f"train_generator.batch_size={batch_size}"]
    config = load_config(overrides=[*overrides, *arguments.set])
    source = labelled_source(
        arguments.data / "train" / "images", find_labels(arguments.data, "train")
    )
    samples = generator_samples(source, 0, config)
    order = BatchOrder([Pass("generator", 0, 0, arguments.steps + 2)], len(samples), batch_size, 0)
    timer = Timer(time.perf_counter())
    loader = run_loader(samples, order, arguments.workers, device.type == "cuda")
    batches = [batch.to(device) for batch in timer.batches(loader) if batch is not None]
    loading = timer.waited * 1000 / len(batches)

    if arguments.memory_of:
        training = training_of(arguments.memory_of, config, arguments.critic, device)
        for batch in batches[:3]:
            steps_of(arguments.memory_of, training)[0](batch)
        print(peak_megabytes(device))
        return

    trainings = {
        name: training_of(name, config, arguments.critic, device) for name in ("ours", "plain")
    }
    times: dict[tuple[str, str], list[float]] = {}
    for number, batch in enumerate(batches):
        for name, training in trainings.items():
            both, adversary = steps_of(name, training)
            for kind, step in (("adversary", adversary), ("generator", both)):
                spent = timed(lambda: step(batch), device)  # noqa: B023
                if number >= 2:
                    times.setdefault((name, kind), []).append(spent)
    first_order = training_of(
        "ours",
        load_config(overrides=[*overrides, *arguments.set, "train_generator.loss_weights.cycl=0"]),
        arguments.critic,
        device,
    )
    pairs = []
    for batch in batches:
        whole, rest = (
            timed(lambda: training._generator_step(batch, Prepared.of(batch), False), device)  # noqa: B023
            for training in (trainings["ours"], first_order)
        )
        pairs.append(whole / rest - 1)
    report(arguments, config, device, times, loading, pairs[2:], batches, trainings["ours"])


def report(
    arguments: argparse.Namespace,
    config: dict[str, Any],
    device: torch.device,
    times: dict[tuple[str, str], list[float]],
    loading: float,
    second_order: list[float],
    batches: list[GeneratorBatch],
    training: GeneratorTraining,
) -> None:
    """Print what was measured."""
    origin = provenance()
    machine = origin["machine"]["gpus"][0] if device.type == "cuda" else origin["machine"]["cpu"]
    faces = statistics.mean(int(batch.present.sum()) for batch in batches)
    covered = statistics.mean(batch.mask.float().mean().item() for batch in batches)
    print(
        f"{machine}, {arguments.threads} thread(s), torch {origin['versions']['torch']}; "
        f"{arguments.frame} px, batch {arguments.batch_size}, {len(batches) - 2} batches with "
        f"{faces:.1f} faces that cover {covered:.0%} on average\n"
    )
    print("| step | ours, ms | plain, ms | ours, images/s | plain / ours (lowest - highest) |")
    print("|---|---|---|---|---|")
    for kind, label in (
        ("generator", "generator (with its adversary step)"),
        ("adversary", "adversary alone"),
    ):
        ours, plain = times["ours", kind], times["plain", kind]
        ratios = [b / a for a, b in zip(ours, plain, strict=True)]
        print(
            f"| {label} | {statistics.median(ours):.0f} | {statistics.median(plain):.0f} | "
            f"{arguments.batch_size * 1000 / statistics.median(ours):.2f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f}) |"
        )
    peaks = {name: memory_of(name, arguments) for name in ("ours", "plain")}
    print(f"\nPeak memory: ours {peaks['ours']:.0f} MB, plain {peaks['plain']:.0f} MB.")
    print(
        f"The second-order term costs {statistics.median(second_order):.2f} times the rest of the "
        f"generator step."
    )
    print(f"Loading a batch: {loading:.0f} ms with {arguments.workers} worker(s).\n")
    print("| part of a generator step | share |")
    print("|---|---|")
    for name, share in shares_of_parts(training, batches[2:], device).items():
        print(f"| {name} | {share:.0%} |")


if __name__ == "__main__":
    main()
