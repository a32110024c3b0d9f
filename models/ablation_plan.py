"""What the ablation comes to: its sizes, what it reads, and each of its trainings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.ablation_cells import (
    FULL,
    REMOVALS,
    GeneratorCell,
    ReviewCell,
    generator_settings,
    row_of,
)
from models.artifact_cells import Cell, cell_settings
from models.artifact_evaluation import SECTIONS, require_backbone
from models.generator import BlurGenerator
from models.training_setup import require_batch, start_detector
from models.variants import VariantPhotos
from models.weights import load_retinaface, load_weights
from utils.artifact_summary import CLEAN, GAUSSIAN
from utils.boxes import usable
from utils.config import CONFIG, load_config
from utils.face_dataset import Source, labelled_source
from utils.provenance import file_digest, path_text
from utils.sampling import spaced
from utils.wider_protocol import PhotoFaces, photos_present, read_ground_truth
from utils.widerface import find_labels

START = "start"
"""The generator that all others go on from."""

CONTROLS = {CLEAN: "clean", GAUSSIAN: "gaussian", START: "dartblur"}
"""The rows beside the trained generators, with their variant of the photos."""


@dataclass(frozen=True)
class Preset:
    """A size of the measurement.

    photos: of the training, at most, for the generators and as many others for the detectors; None
        for half of all. test_photos, review_photos: of the validation, at most, for the AP and
        for S; None for all. Few are taken at even distances.
    recipe: overrides of config.yaml. longest_side: of the test photos, px.
    minimum_clean_ap: what every clean-trained detector must reach on `JUDGED`.
    """

    seeds: Sequence[int]
    photos: int | None
    test_photos: int | None
    review_photos: int | None
    recipe: Sequence[str]
    longest_side: int
    minimum_clean_ap: float


PRESETS = {
    "small": Preset(
        seeds=(0,),
        photos=320,
        test_photos=300,
        review_photos=50,
        recipe=(
            "train_generator.frame=192",
            "train_generator.batch_size=4",
            "train_generator.scale=[0.9,1.8]",
            "train_generator.placements=10",
            "train_generator.epochs=1",
            "train_generator.adversary_epochs=0",
            "train_detector.frame=224",
            "train_detector.batch_size=16",
            "train_detector.epochs=16",
        ),
        longest_side=640,
        minimum_clean_ap=0.5,
    ),
    "full": Preset(
        seeds=(0, 1, 2),
        photos=None,
        test_photos=None,
        review_photos=None,
        recipe=(
            "train_generator.frame=512",
            "train_generator.epochs=5",
            "train_detector.frame=640",
            "train_detector.batch_size=16",
            "train_detector.epochs=60",
        ),
        longest_side=1024,
        minimum_clean_ap=0.75,
    ),
}
"""`full` has not been run yet; its minimum is provisional."""


@dataclass(frozen=True)
class Plan:
    """What the options come to, with all that is read before anything is written.

    recipes: by generator row, config.yaml with the preset, the overrides and without the part.
    sources: by model, the photos that its training sees. listed, ground_truth: the official lists,
    and the part of them that is tested.
    """

    options: argparse.Namespace
    preset: Preset
    seeds: Sequence[int]
    longest_side: int
    recipes: Mapping[str, dict[str, Any]]
    labels: Path
    sources: Mapping[str, Source]
    listed: Mapping[str, PhotoFaces]
    ground_truth: Mapping[str, PhotoFaces]

    @classmethod
    def of(cls, options: argparse.Namespace) -> Plan:
        """Read configuration, labels and official lists."""
        preset = PRESETS[options.preset]
        removals = [
            (row_of(part), [REMOVALS[part]]) for part in REMOVALS if part in options.without
        ]
        recipes = {
            row: load_config(CONFIG, [*preset.recipe, *options.set, *removal])
            for row, removal in [(FULL, []), *removals]
        }
        labels = find_labels(options.data, "train")
        source = labelled_source(options.data / "train" / "images", labels)
        half = len(source.photos) // 2
        count = half if preset.photos is None else min(preset.photos, half)
        listed = read_ground_truth(options.data / "ground_truth")
        present = photos_present(listed, options.data / "val" / "images")
        return cls(
            options,
            preset,
            list(dict.fromkeys(options.seeds or preset.seeds)),
            options.longest_side or preset.longest_side,
            recipes,
            labels,
            {
                model: Source(spaced(source.photos, count, shift), source.images_dir)
                for model, shift in (("detector", 0.0), ("generator", 0.5))
            },
            listed,
            {path: present[path] for path in spaced(list(present), preset.test_photos)},
        )

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return self.options.output / self.options.name

    @property
    def config(self) -> dict[str, Any]:
        """The configuration with nothing left out."""
        return self.recipes[FULL]

    def list_of(self, model: str) -> Path:
        """The label file of the photos that a model's training sees."""
        return self.folder / f"{model}_photos.txt"

    def check(self) -> None:
        """Raise one of `ERRORS` for what does not fit: it must not cost an hour first."""
        options = self.options
        for model, source in self.sources.items():
            require_batch(model, len(source.photos), self.config)
        require_backbone(options.backbone)
        start_detector(self.detector(CLEAN, self.seeds[0]).settings, None)
        load_retinaface(options.critic)
        load_weights(BlurGenerator(), options.init_generator)

    @property
    def minimum(self) -> float:
        """The AP that every clean-trained detector must reach."""
        stated = self.options.minimum_clean_ap
        return self.preset.minimum_clean_ap if stated is None else stated

    def setup(self) -> dict[str, Any]:
        """How it is measured, for the results."""
        options, config = self.options, self.config
        return {
            "preset": options.preset,
            "overrides": options.set,
            "init_generator": path_text(options.init_generator),
            "critic": path_text(options.critic),
            "longest_side": self.longest_side,
            "photos": {model: len(source.photos) for model, source in self.sources.items()},
            "faces": {
                model: sum(int(usable(photo.boxes).sum()) for photo in source.photos)
                for model, source in self.sources.items()
            },
            **{name: config[name] for name in ("train_generator", "train_detector", "output")},
        }

    def held(self) -> dict[str, Any]:
        """What must stay the same for results in one folder to be comparable."""
        options = self.options
        return {
            **{section: self.config[section] for section in (*SECTIONS, "train_generator")},
            "longest_side": self.longest_side,
            "labels": file_digest(self.labels),
            "training_photos": {name: len(own.photos) for name, own in self.sources.items()},
            "test_photos": len(self.ground_truth),
            "review_photos": self.preset.review_photos,
            "backbone": file_digest(options.backbone),
            "critic": file_digest(options.critic),
            "init_generator": file_digest(options.init_generator),
        }

    def generators(self) -> list[GeneratorCell]:
        """The trainings, the whole recipe first among those of a seed."""
        options = self.options
        return [
            GeneratorCell(
                row,
                seed,
                self.folder / "generators" / f"{row}-{seed}",
                generator_settings(
                    self.sources["generator"].images_dir,
                    self.list_of("generator"),
                    options.critic,
                    options.init_generator,
                    seed,
                    recipe,
                ),
            )
            for seed in self.seeds
            for row, recipe in self.recipes.items()
        ]

    def reviews(self, generators: Sequence[GeneratorCell]) -> dict[tuple[str, int], ReviewCell]:
        """By row and seed what is to be measured of the generators, and of the start."""
        options, most = self.options, self.preset.review_photos
        start = self.folder / "generators" / START
        places = {(START, seed): (start, options.init_generator) for seed in self.seeds}
        places |= {(cell.row, cell.seed): (cell.folder, cell.weights) for cell in generators}
        return {
            key: ReviewCell(*place, options.data, most, self.config)
            for key, place in places.items()
        }

    def detector(self, row: str, seed: int) -> Cell:
        """The training of one detector on the photos of one row."""
        labels, backbone = self.list_of("detector"), self.options.backbone
        return Cell(
            row,
            seed,
            self.folder / "detectors" / f"{row}-{seed}",
            cell_settings(self.photos_of(row, seed), labels, backbone, seed, self.config),
            self.options.data / "val" / "images",
            self.ground_truth,
            self.longest_side,
            curve_points=1,
        )

    def photos_of(self, row: str, seed: int) -> Path:
        """The folder of a row's training photos; those of `CONTROLS` are the same for all seeds."""
        return self.folder / "variants" / (row if row in CONTROLS else f"{row}-{seed}")

    def variant(self, row: str, seed: int, weights: Path) -> VariantPhotos:
        """The detectors' photos as one row shows them."""
        source = self.sources["detector"]
        return VariantPhotos(
            CONTROLS.get(row, "dartblur"),
            source.photos,
            source.images_dir,
            self.photos_of(row, seed),
            self.config,
            [weights],
            self.options.device,
        )
