"""The recipe's numbers: reads `config.yaml` and applies overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).resolve().parent.parent / "config.yaml"

BACKBONES = ("mobilenet0.25", "resnet50")
RANGES = (("train_generator", "aspect"), ("train_generator", "scale"), ("train_detector", "crop"))
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
PRECISIONS = ("float32", "bfloat16", "auto")

INFINITE = float("inf")
LIMITS = {
    "blur.kernel_factor": (0.01, 100),
    "blur.jpeg_quality": (1, 100),
    "generator.face_size": (32, INFINITE),
    "generator.context": (0, INFINITE),
    "multibox.match_iou": (0, 1),
    "multibox.label_smoothing": (0, 1),
    "train_generator.epochs": (1, INFINITE),
    "train_generator.adversary_lr": (0, INFINITE),
    "train_generator.generator_lr": (0, INFINITE),
    "train_generator.warm_start_lr": (0, INFINITE),
    "train_generator.betas": (0, 0.999999),
    "train_generator.lr_decay": (0, 1),
    "train_generator.clip_norm": (0, INFINITE),
    "train_generator.batch_size": (1, INFINITE),
    "train_generator.frame": (32, INFINITE),
    "train_generator.aspect": (0.05, 20),
    "train_generator.scale": (0.05, 20),
    "train_generator.placements": (1, INFINITE),
    "train_generator.adversary_epochs": (0, INFINITE),
    "train_generator.moment_warmup": (1, INFINITE),
    "train_generator.warm_start_steps": (0, INFINITE),
    "train_generator.checkpoint_every": (1, INFINITE),
    "train_generator.keep_checkpoints": (1, INFINITE),
    "train_generator.pictures_every": (0, INFINITE),
    "train_detector.epochs": (1, INFINITE),
    "train_detector.lr": (1e-12, INFINITE),
    "train_detector.weight_decay": (0, INFINITE),
    "train_detector.batch_size": (1, INFINITE),
    "train_detector.frame": (32, INFINITE),
    "train_detector.crop": (0.01, 1),
    "train_detector.checkpoint_every": (1, INFINITE),
    "train_detector.keep_checkpoints": (1, INFINITE),
    "train_detector.pictures_every": (0, INFINITE),
    "detect.score": (0, 1),
    "detect.nms_iou": (0, 1),
    "detect.zoom": (1, 8),
    "detect.longest_side": (32, INFINITE),
    "detect.shortest_pass": (32, INFINITE),
    "detect.largest_face": (32, INFINITE),
    "detect.enlarge": (1, INFINITE),
    "input.max_megapixels": (0.000001, INFINITE),
    "output.jpeg_quality": (1, 100),
}
"""Lowest and highest value of a number, or of each number in a list."""


class ConfigError(ValueError):
    """A configuration file or override that cannot be used; the message is one clear line."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for its numbers of base 60: a subsampling of 4:4:4 is text, not 14644."""

    def int_or_text(self, node: yaml.ScalarNode) -> int | str:
        return str(node.value) if ":" in node.value else self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.int_or_text)


def load_config(path: Path = CONFIG, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read `path` over the repository's `config.yaml` and apply `section.key=value` overrides.

    Values are YAML, so `train_generator.scale=[1.0,2.4]` is a list. A key that
    `config.yaml` does not have, or a value of another type than its default, raises
    `ConfigError`: a misspelt number must not silently leave the default in force.
    """
    config = _read_yaml(CONFIG)
    if path != CONFIG:
        _merge(config, _read_yaml(path), str(path))
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected section.key=value")
        try:
            nested: Any = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: the value is not YAML") from None
        for key in reversed(dotted.split(".")):
            nested = {key: nested}
        _merge(config, nested, f"--set {override}")
    check_limits(config)
    return config


def check_limits(config: dict[str, Any]) -> None:
    """Raise `ConfigError` for a number outside its `LIMITS`, or for an unknown name."""
    for name, (lowest, highest) in LIMITS.items():
        section, key = name.split(".")
        value = config[section][key]
        for number in value if isinstance(value, list) else [value]:
            if not lowest <= number <= highest:
                raise ConfigError(f"{name} must be from {lowest} to {highest}, not {number}")
    for section, key in RANGES:
        low, high = config[section][key]
        if low > high:
            raise ConfigError(f"{section}.{key} must be [low, high], not [{low}, {high}]")
    if config["critic"]["backbone"] not in BACKBONES:
        raise ConfigError(f"critic.backbone must be one of {', '.join(BACKBONES)}")
    recipe = config["train_generator"]
    if recipe["precision"] not in PRECISIONS:
        raise ConfigError(f"train_generator.precision must be one of {', '.join(PRECISIONS)}")
    weights = recipe["loss_weights"]
    first_order = any(weights[name] for name in ("rev", "proc", "post"))
    if not first_order and not (weights["cycl"] and recipe["second_order"]):
        raise ConfigError(
            "train_generator.loss_weights and second_order leave the generator no gradient; "
            "cycl gives one through second_order only"
        )
    if config["output"]["jpeg_subsampling"] not in SUBSAMPLINGS:
        raise ConfigError(f"output.jpeg_subsampling must be one of {', '.join(SUBSAMPLINGS)}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[-1].strip()
        raise ConfigError(f"{path}: not a YAML file ({line})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections with keys, found {type(content).__name__}")
    return content


def _merge(base: dict[str, Any], change: dict[str, Any], source: str, prefix: str = "") -> None:
    for key, value in change.items():
        name = f"{prefix}{key}"
        if key not in base:
            raise ConfigError(f"{source}: config.yaml has no '{name}'; it has {', '.join(base)}")
        default = base[key]
        if isinstance(default, dict) and isinstance(value, dict):
            _merge(default, value, source, f"{name}.")
            continue
        try:
            base[key] = _fitted(value, default)
        except ValueError:
            raise ConfigError(
                f"{source}: '{name}' must look like {default!r}, not {value!r}"
            ) from None


def _fitted(value: Any, default: Any) -> Any:
    """Return `value` as the type of `default`; raises ValueError where it is of another."""
    if isinstance(default, list) and isinstance(value, list) and len(value) == len(default):
        return [_fitted(*pair) for pair in zip(value, default, strict=True)]
    if type(default) is float and type(value) in (int, str):
        return float(value)  # YAML 1.1 takes 5e-4 for text
    if type(value) is not type(default) or isinstance(default, list):
        raise ValueError
    return value
