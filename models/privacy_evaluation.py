"""The privacy measurement: who is recognised on anonymised photos, and on restored ones.

On Labeled Faces in the Wild, by dlib's face recogniser. The attacker is told where the face and
its landmarks are, from the clean photo: a missed detection does not count as privacy.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.anonymize import AnonymizeError, Anonymizer, load_anonymizer
from models.detection import DetectionError
from models.privacy_photos import Face, Portrait, as_written, read_portrait, training_faces
from models.privacy_report import FARS, percent, privacy_results, tar_key
from models.recognition import FaceRecogniser, RecognitionError, load_recogniser
from models.redraw import RedrawError
from models.restoration import (
    RestorationError,
    RestorationNet,
    crop_mask,
    face_crop,
    paste_crop,
    restore,
    train_restoration,
)
from models.weights import DETECTOR, GENERATOR, WeightsError, load_retinaface
from utils.blur import face_mask
from utils.config import load_config
from utils.device import DeviceError, pick_device
from utils.identification import embedding_distances, rank1_interval, tar_interval
from utils.image_files import PhotoError, Pixels
from utils.lfw import LfwError, read_people, split_people
from utils.provenance import path_text, provenance
from utils.results import write_results
from utils.widerface import LabelError

Floats = NDArray[np.float64]

PACKAGES = ("dlib-bin", "face_recognition_models", "matplotlib")
"""The distributions, beside those of requirements.txt, that the measurement needs."""

ERRORS = (
    AnonymizeError,
    DetectionError,
    DeviceError,
    LabelError,
    LfwError,
    OSError,
    PhotoError,
    RecognitionError,
    RedrawError,
    RestorationError,
    WeightsError,
)
"""What `run` raises; all with one-line messages."""

PHOTOS = 4
"""Photos of each person."""

STRONG = 1.0
"""Kernel factor of the stronger Gaussian blur."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads beside `data`, `output`, `name` and `device`."""
    parser.add_argument(
        "--lfw", type=Path, default=Path("data/lfw"), help="<person>/*.jpg (%(default)s)"
    )
    parser.add_argument(
        "--generator", type=Path, default=GENERATOR, metavar="FILE", help="weights (%(default)s)"
    )
    parser.add_argument(
        "--detector", type=Path, default=DETECTOR, metavar="FILE", help="RetinaFace (%(default)s)"
    )
    numbers = {  # default, lowest
        "test-people": (100, 2, "people to recognise; the others train the restoration"),
        "faces": (2000, 0, "most faces of WIDER FACE that train the restoration"),
        "steps": (800, 2, "training steps of the restoration, for each variant"),
        "resamples": (1000, 1, "of the bootstrap over people"),
        "seed": (0, 0, "of the split, the trainings and the bootstrap"),
    }
    for name, (default, _, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (%(default)s)")

    def check(options: argparse.Namespace) -> None:
        for name, (_, lowest, _) in numbers.items():
            if getattr(options, name.replace("-", "_")) < lowest:
                parser.error(f"--{name} must be {lowest} or more")

    parser.set_defaults(check=check)


def run(options: argparse.Namespace) -> None:
    """Measure and write the results. Raises one of `ERRORS`."""
    values = measure(options)
    people = values["setup"]["test_people"]
    data = (
        f"{people} people of {options.lfw}, {PHOTOS} photos each; faces that train the restoration "
        f"from {options.data}."
    )
    folder = options.output / options.name
    write_results(folder, privacy_results(values, data, options.seed), provenance(PACKAGES))
    for row in values["rows"]:
        print(f"{row['variant']}, {row['attack']}: rank-1 {percent(row['rank1'])} %")
    print(f"{folder / 'results.md'}: {people} people")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Recognise the test people on every variant, under every attack; plain values.

    Keys: `rows`, one for a variant and attack; `restorations`, one for a variant; `setup`.
    A rate is [value, low, high], the ends those of its 95 % interval. Raises one of `ERRORS`.
    """
    started = time.process_time()
    config, device = load_config(), pick_device(options.device)
    recogniser, variants = load_recogniser(), load_variants(config, device, options.generator)
    test, own = read_portraits(options, recogniser, config)
    sides = np.array([(face.boxes[0, 2:] - face.boxes[0, :2]).max() for face in own])
    rng = np.random.default_rng(options.seed)
    enlarged = config["detect"]["enlarge"]
    training: list[Face] = [
        *own,
        *training_faces(options.data, sides, enlarged, options.faces, rng),
    ]
    masks = np.stack([crop_mask(face.pixels, face.boxes[0]) for face in training])
    wanted = crops([face.pixels for face in training], training)

    rows: list[dict[str, Any]] = []
    restorations: list[dict[str, Any]] = []

    def add_row(variant: str, attack: str, probes: Floats, gallery: Floats) -> None:
        distances = embedding_distances(probes, gallery)
        rows.append({"variant": variant, "attack": attack, **all_rates(distances, options)})

    gallery = embedded(anonymized(test, None, config, "clean"), test, recogniser)
    add_row("clean", "naive", gallery, gallery)
    for name, anonymizer in variants.items():
        hidden = anonymized(test, anonymizer, config, name)
        probes = embedded(hidden, test, recogniser)
        add_row(name, "naive", probes, gallery)
        add_row(name, "same tool", probes, probes)
        inputs = crops(anonymized(training, anonymizer, config, f"{name}, training"), training)
        network, losses = train_restoration(
            inputs, wanted, masks, options.steps, options.seed, device
        )
        restored = restored_photos(network, hidden, test)
        probes = embedded(restored, test, recogniser)
        add_row(name, "restored", probes, gallery)
        add_row(name, "both restored", probes, probes)
        restorations.append(
            {
                "variant": name,
                "before": mean_errors(hidden, test),
                "after": mean_errors(restored, test),
                "loss_first": float(np.mean(losses[:20])),
                "loss_last": float(np.mean(losses[-20:])),
            }
        )
    setup = {
        "test_people": options.test_people,
        "photos_each": PHOTOS,
        "landmarks_from": Counter(face.landmarks_from for face in test),
        "box_from": Counter(face.box_from for face in test),
        "training_people": len(own) // PHOTOS,
        "training_faces_wider": len(training) - len(own),
        "steps": options.steps,
        "kernel_factor": config["blur"]["kernel_factor"],
        "strong_kernel_factor": STRONG,
        "generator": path_text(options.generator),
        "cpu_minutes": (time.process_time() - started) / 60,
    }
    return {"rows": rows, "restorations": restorations, "setup": setup}


def read_portraits(
    options: argparse.Namespace, recogniser: FaceRecogniser, config: Mapping[str, Any]
) -> tuple[list[Portrait], list[Portrait]]:
    """Portraits of the test people and of the others, `PHOTOS` a person in a row."""
    people = read_people(options.lfw, PHOTOS)
    groups = split_people(list(people), options.test_people, options.seed)
    detector = load_retinaface(options.detector).eval()
    test, others = (
        [
            read_portrait(path, recogniser, detector, config)
            for path in tqdm([path for name in names for path in people[name]], "find", unit="face")
        ]
        for names in groups
    )
    return test, others


def load_variants(
    config: Mapping[str, Any], device: torch.device, weights: Path
) -> dict[str, Anonymizer]:
    """The ways to anonymise that are compared, without a detector."""
    strong = {**config, "blur": {**config["blur"], "kernel_factor": STRONG}}
    recipes = {
        "gaussian": ("gaussian", config),
        "gaussian, strong": ("gaussian", strong),
        "mosaic": ("mosaic", config),
        "black": ("black", config),
        "dartblur": ("dartblur", config),
    }
    return {
        name: load_anonymizer(method, recipe, device, weights, detector=None)
        for name, (method, recipe) in recipes.items()
    }


def anonymized(
    faces: Sequence[Face], anonymizer: Anonymizer | None, config: Mapping[str, Any], label: str
) -> list[Pixels]:
    """The photos, anonymised where there is an anonymizer, as dartblur.py writes them."""
    photos = []
    with tempfile.TemporaryDirectory() as folder:
        for face in tqdm(faces, desc=label, unit="face"):
            pixels = anonymizer(face.pixels, face.boxes).pixels if anonymizer else face.pixels
            photos.append(as_written(pixels, config["output"], Path(folder)))
    return photos


def embedded(
    photos: Sequence[Pixels], portraits: Sequence[Portrait], recogniser: FaceRecogniser
) -> Floats:
    """Embeddings [P, S, 128] of the photos, aligned by the landmarks of the clean ones."""
    pairs = zip(photos, portraits, strict=True)
    vectors = [
        recogniser.embed(pixels, portrait.landmarks)
        for pixels, portrait in tqdm(pairs, desc="recognise", unit="face", total=len(photos))
    ]
    return np.stack(vectors).reshape(-1, PHOTOS, vectors[0].size)


def crops(photos: Sequence[Pixels], faces: Sequence[Face]) -> Pixels:
    """The crops [N, SIDE, SIDE, 3] around the faces in question."""
    pairs = zip(photos, faces, strict=True)
    return np.stack([face_crop(pixels, face.boxes[0]) for pixels, face in pairs])


def restored_photos(
    network: RestorationNet, hidden: Sequence[Pixels], faces: Sequence[Face]
) -> list[Pixels]:
    """The photos with the boxes of the faces in question restored."""
    masks = np.stack([crop_mask(face.pixels, face.boxes[0]) for face in faces])
    restored = restore(network, crops(hidden, faces), masks)
    return [
        paste_crop(pixels, face.boxes[0], crop)
        for pixels, face, crop in zip(hidden, faces, restored, strict=True)
    ]


def mean_errors(photos: Sequence[Pixels], faces: Sequence[Face]) -> dict[str, float]:
    """Mean `l1` (grey levels) and `psnr` (dB) in the boxes, against the clean photos."""
    errors = []
    for pixels, face in zip(photos, faces, strict=True):
        box = face_mask(face.boxes[:1], *pixels.shape[:2]) > 0
        difference = pixels[box].astype(np.float64) - face.pixels[box]
        psnr = 20 * np.log10(255 / np.sqrt((difference**2).mean()))
        errors.append((np.abs(difference).mean(), psnr))
    l1, psnr = np.mean(errors, axis=0).tolist()
    return {"l1": l1, "psnr": psnr}


def all_rates(distances: Floats, options: argparse.Namespace) -> dict[str, Any]:
    """Rates of one row, and how many trials they rest on."""
    seed, resamples = options.seed, options.resamples
    people, photos = distances.shape[:2]
    pairs = photos * (photos - 1)
    return {
        "rank1": list(rank1_interval(distances, seed, resamples)),
        **{tar_key(far): list(tar_interval(distances, far, seed, resamples)) for far in FARS},
        "people": people,
        "photos": people * photos,
        "identifications": people * pairs,
        "impostor_pairs": people * (people - 1) * pairs,
    }
