#!/usr/bin/env python
"""Measure what the README claims. Needs `pip install -r requirements-eval.txt`.

WIDER FACE's official AP (easy, medium, hard) of a RetinaFace, on the validation photos that are
there; --images takes blurred copies of them instead:

    python evaluate.py detection
    python evaluate.py detection --data DIR --weights FILE --name mine --longest-side 640
    python evaluate.py detection --images data/widerface/val/images_dartblur --name dartblur

The same for any other detector's predictions, DIR/<event>/<name>.txt in the official text format:

    python evaluate.py detection --predictions DIR --name theirs

Training artifacts, the headline: detectors trained on each variant of the training photos, tested
on clean validation photos. The first is meant for a GPU, the second for two CPU cores and less than
90 minutes; both go on where they were stopped:

    python evaluate.py artifacts --variants clean gaussian mosaic black dartblur --seeds 0 1 2
    python evaluate.py artifacts --preset small --jobs 2 --name artifacts_small

What each part of the generator's training is worth: short generators without it, and detectors
trained on what they draw; half an hour on two CPU cores; it goes on where it was stopped:

    python evaluate.py ablation --jobs 2

What a detector trained on clean photos finds on anonymised ones; how far a redrawn face is from
the blurred and the clean one:

    python evaluate.py accessibility
    python evaluate.py review

Whether people are recognised on anonymised photos, and after a network has tried to restore them:

    python evaluate.py privacy --lfw DIR

Privacy against utility, from results that are there; a sheet of examples in the public domain:

    python evaluate.py tradeoff --artifacts results/artifacts_small
    python evaluate.py examples

The tree of --data is the one that data/README.md describes, with the official lists
wider_{face,easy,medium,hard}_val.mat in its folder ground_truth. Results go to results/<name>:
results.json, results.md and figures, beside what led to them. Each command has a manual of its own:
python evaluate.py artifacts --help. Exit code 0; 1 after an error; 2 where options contradict each
other; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import torch

from models import (
    ablation_evaluation,
    accessibility_evaluation,
    artifact_evaluation,
    detector_evaluation,
    example_evaluation,
    privacy_evaluation,
    review_evaluation,
    tradeoff_evaluation,
)


class EvaluationError(Exception):
    """An evaluation that cannot start; the message is one line."""


COMMANDS: dict[str, tuple[ModuleType, str]] = {
    "detection": (detector_evaluation, "WIDER FACE's official AP of a detector"),
    "artifacts": (artifact_evaluation, "detectors trained on each variant of the photos"),
    "ablation": (ablation_evaluation, "short generators without one part of the recipe each"),
    "accessibility": (accessibility_evaluation, "faces that are found on anonymised photos"),
    "review": (review_evaluation, "redrawn faces against blurred and clean ones"),
    "privacy": (privacy_evaluation, "people recognised on anonymised and on restored photos"),
    "tradeoff": (tradeoff_evaluation, "privacy against utility, from the results of the two"),
    "examples": (example_evaluation, "a sheet of public-domain photos in every variant"),
}
"""The module of each command has `add_arguments`, `run`, `PACKAGES` and `ERRORS`."""

EXPECTED_ERRORS = (
    EvaluationError,
    *(error for module, _ in COMMANDS.values() for error in module.ERRORS),
)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ends the program with code 2 where options contradict each other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        add_command(commands, name, module, text)
    options = parser.parse_args(arguments)
    options.check(options)
    if options.name in ("", ".", "..") or Path(options.name).name != options.name:
        parser.error(f"--name {options.name!r}: expected the name of a folder, without a path")
    return options


def add_command(commands: Any, name: str, module: ModuleType, text: str) -> None:
    """Declare a command; its results go to a folder of its name unless told otherwise."""
    parser = commands.add_parser(
        name,
        help=text,
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/widerface"), help="WIDER FACE tree (%(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results"), help="folder of all results (%(default)s)"
    )
    parser.add_argument("--name", default=name, help="folder in --output (%(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.set_defaults(run=module.run, check=lambda options: None, packages=module.PACKAGES)
    module.add_arguments(parser)


def require_packages(packages: Sequence[str]) -> None:
    """Raise `EvaluationError` where a package is missing: better now than after the work."""
    missing = []
    for name in packages:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise EvaluationError(
            f"{' and '.join(missing)} not installed: pip install -r requirements-eval.txt"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(arguments)
    cv2.setNumThreads(1)
    # As in training: TF32 convolutions, cuDNN's default, keep 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    try:
        require_packages(options.packages)
        options.run(options)
    except torch.cuda.OutOfMemoryError:
        print(
            "evaluate.py: the GPU's memory does not suffice; lower --longest-side, or for "
            "artifacts and ablation --jobs or a batch_size",
            file=sys.stderr,
        )
        return 1
    except EXPECTED_ERRORS as error:
        # A loader process sends its traceback along; the error itself is the last line.
        print(f"evaluate.py: {str(error).splitlines()[-1]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
