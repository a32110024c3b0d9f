from __future__ import annotations

import re
from pathlib import Path

import pytest

from utils.config import CONFIG, ConfigError, load_config


def refusal(path: Path = CONFIG, overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides or [])
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_numbers_of_the_method() -> None:
    """Those that config.yaml does not mark as ours, as method.md gives them."""
    config = load_config()
    recipe = config["train_generator"]
    expected = {
        "epochs": 100,
        "batch_size": 8,
        "frame": 768,
        "aspect": [0.7, 1.3],
        "scale": [0.95, 1.05],
        "adversary_epochs": 3,
        "adversary_lr": 5e-4,
        "generator_lr": 2e-4,
        "betas": [0.5, 0.999],
        "lr_decay": 0.925,
        "clip_norm": 500.0,
        "review_budget": 20.0,
        "loss_weights": {"rev": 1.0, "proc": 1.0, "post": 1.0, "cycl": 1.0},
    }
    assert {name: recipe[name] for name in expected} == expected
    assert config["multibox"] == {
        "match_iou": 0.35,
        "negatives_per_positive": 7,
        "box_weight": 2.0,
        "label_smoothing": 0.2,
    }
    assert (config["critic"]["score_logit"], config["critic"]["nms_iou"]) == (0.01, 0.45)
    assert config["blur"] == {"kernel_factor": 0.5, "jpeg_quality": 80, "folder": "images_G2_M80"}
    assert config["output"] == {
        "jpeg_quality": 95,
        "jpeg_subsampling": "4:4:4",
        "keep_metadata": False,
    }


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_subsampling_needs_no_quotes(tmp_path: Path, subsampling: str) -> None:
    """YAML 1.1 takes 4:4:4 for the number 14644, to the base 60."""
    config = load_config(overrides=[f"output.jpeg_subsampling={subsampling}"])
    assert config["output"]["jpeg_subsampling"] == subsampling
    path = tmp_path / "mine.yaml"
    path.write_text(f"output: {{jpeg_subsampling: {subsampling}, jpeg_quality: 0x5a}}\n")
    output = load_config(path)["output"]
    assert (output["jpeg_subsampling"], output["jpeg_quality"]) == (subsampling, 90)


def test_overrides() -> None:
    config = load_config(
        overrides=[
            "train_generator.epochs=2",
            "train_generator.clip_norm=7",
            "train_generator.scale=[1.0, 2.4]",
            "train_generator.loss_weights.cycl=0.0",
            "train_generator.adversary_lr=5e-5",  # YAML 1.1 would take this for text
            "blur.folder=other",
            "train_generator.epochs=3",  # the later one holds
        ]
    )
    recipe = config["train_generator"]
    assert recipe["epochs"] == 3
    assert recipe["clip_norm"] == 7.0
    assert isinstance(recipe["clip_norm"], float)
    assert recipe["scale"] == [1.0, 2.4]
    assert recipe["loss_weights"] == {"rev": 1.0, "proc": 1.0, "post": 1.0, "cycl": 0.0}
    assert recipe["adversary_lr"] == 5e-5
    assert config["blur"]["folder"] == "other"
    assert load_config()["train_generator"]["epochs"] == 100  # nothing is remembered


def test_a_file_states_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train_generator:\n  frame: 320\n  loss_weights: {post: 0}\n")
    config = load_config(path, ["train_generator.batch_size=4"])
    expected = load_config()
    expected["train_generator"]["frame"] = 320
    expected["train_generator"]["batch_size"] = 4
    expected["train_generator"]["loss_weights"]["post"] = 0.0
    assert config == expected


BAD_OVERRIDES = {
    "train_generator.epoch=3": "has no 'train_generator.epoch'; it has epochs, ",
    "epochs=3": "has no 'epochs'",
    "train_generator.epochs.more=3": "'train_generator.epochs' must look like 100",
    "train_generator=3": "'train_generator' must look like",
    "train_generator.epochs=2.5": "must look like 100, not 2.5",
    "train_generator.epochs=true": "must look like 100, not True",
    "train_generator.epochs=": "not None",
    "train_generator.clip_norm=high": "must look like 500.0, not 'high'",
    "train_generator.clip_norm=true": "must look like 500.0, not True",
    "train_generator.scale=[1.0]": "must look like [0.95, 1.05], not [1.0]",
    "train_generator.scale=[1.0, wide]": "must look like [0.95, 1.05]",
    "train_generator.scale=1.0": "must look like [0.95, 1.05], not 1.0",
    "blur.folder=3": "must look like 'images_G2_M80', not 3",
    "train_generator.scale=[1.0": "not YAML",
    "train_generator.epochs": "expected section.key=value",
    "=3": "has no ''",
}


@pytest.mark.parametrize(("override", "words"), BAD_OVERRIDES.items())
def test_overrides_that_do_not_fit(override: str, words: str) -> None:
    message = refusal(overrides=[override])
    assert message.startswith(f"--set {override}: ")
    assert words in message


BAD_FILES = {
    "a: [": "not a YAML file",
    "- 1\n- 2\n": "found list",
    "": "found NoneType",
    "train_generator:\n  frames: 3\n": "has no 'train_generator.frames'",
    "train_generator:\n": "'train_generator' must look like",
    "1: 2\n": "has no '1'",
}


@pytest.mark.parametrize(("content", "words"), BAD_FILES.items())
def test_files_that_do_not_fit(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert re.search("no such", refusal(path))
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert "not a YAML file" in refusal(path)


def test_no_code_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"blur: !!python/object/apply:pathlib.Path.touch ['{tmp_path / 'executed'}']\n")
    assert "not a YAML file" in refusal(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train_generator.batch_size=0", "train_generator.batch_size must be from 1"),
        ("train_generator.scale=[0.9, 99.0]", "not 99.0"),
        ("detect.score=1.5", "detect.score must be from 0 to 1"),
        ("detect.zoom=0.5", "detect.zoom must be from 1 to 8"),
        ("detect.largest_face=8", "detect.largest_face must be from 32"),
        ("detect.shortest_pass=0", "detect.shortest_pass must be from 32"),
        ("detect.flip=1", "'detect.flip' must look like False"),
        ("output.jpeg_subsampling=none", "must be one of 4:4:4, 4:2:2, 4:2:0"),
    ],
)
def test_a_number_outside_its_limits_is_refused(override: str, words: str) -> None:
    assert words in refusal(overrides=[override])
