"""The recipe's numbers: reads `config.yaml` and applies overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).resolve().parent.parent / "config.yaml"


class ConfigError(ValueError):
    """A configuration file or override that cannot be used; the message is one clear line."""


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
            nested: Any = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: the value is not YAML") from None
        for key in reversed(dotted.split(".")):
            nested = {key: nested}
        _merge(config, nested, f"--set {override}")
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
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
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default) or (
            isinstance(default, list) and len(value) != len(default)
        ):
            raise ConfigError(f"{source}: '{name}' must look like {default!r}, not {value!r}")
        base[key] = value
