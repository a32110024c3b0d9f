from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from models.generator import BlurGenerator
from models.retinaface import BACKBONES, RetinaFace
from models.weights import (
    GENERATOR,
    WeightsError,
    build_retinaface,
    load_backbone,
    load_retinaface,
    load_weights,
    read_state_dict,
    save_weights,
)


class Trap:
    """Unpickling it creates the file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))


def refusal(model: nn.Module, path: Path) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path: Path, kind: str) -> None:
    marker, file = tmp_path / "executed", tmp_path / "weights.pth"
    content = {**small().state_dict(), "extra": Trap(marker)}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))  # torch.save's own
    else:
        torch.save(content, file)
    assert "code" in refusal(small(), file)
    assert not marker.exists()
    with file.open("rb") as stream:  # the trap is a real one
        if kind == "pickle":
            pickle.load(stream)
        else:
            torch.load(stream, weights_only=False)
    assert marker.exists()


BROKEN = {
    "weights.safetensors": [b"", b"no weights at all", b"\xff" * 100],
    "weights.pth": [b"", b"no weights at all\n", b"PK\x03\x04 broken", b"\x80\x02broken"],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, c) for name, contents in BROKEN.items() for c in contents]
)
def test_files_that_hold_no_weights(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(small(), tmp_path / name)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated_files(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(small().state_dict(), path)
    else:
        save_weights(small(), path)
    load_weights(small(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "truncated" in refusal(small(), path)


@pytest.mark.parametrize(
    "content", [[1, 2], torch.zeros(3), {"a": 1}, {1: torch.zeros(2)}, {"state_dict": {"a": "b"}}]
)
def test_other_content(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert "no state dict" in refusal(small(), tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.safetensors"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    assert "no such" in refusal(small(), tmp_path / name)


def test_a_folder_is_no_weight_file(tmp_path: Path) -> None:
    refusal(small(), tmp_path)


def test_weights_of_another_model_name_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(small(), path)
    message = refusal(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), path)
    assert "Sequential" in message
    assert "0.bias" in message
    save_weights(RetinaFace(), path)
    assert "300 tensors, 40 expected" in refusal(BlurGenerator(), path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_saved_is_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = small().to(memory_format=torch.channels_last)
    model(torch.randn(4, 2, 8, 8))
    path = tmp_path / "new folder" / "weights.safetensors"
    save_weights(model, path, dtype)
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    stored = safetensors.torch.load_file(path)
    assert stored["0.weight"].dtype == dtype
    assert stored["1.num_batches_tracked"].dtype == torch.int64
    loaded = small()
    load_weights(loaded, path)
    for name, value in model.state_dict().items():
        expected = value.to(dtype).float() if value.is_floating_point() else value
        assert loaded.state_dict()[name].dtype == value.dtype
        assert torch.equal(loaded.state_dict()[name], expected)


def test_values_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    model = small()
    save_weights(model, path)
    before = path.read_bytes()
    with torch.no_grad():
        model.get_parameter("1.weight")[0] = 1e6
    with pytest.raises(WeightsError, match=r"1\.weight is not finite"):
        save_weights(model, path, torch.float16)
    assert path.read_bytes() == before
    save_weights(model, path)


def test_only_safetensors_are_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="safetensors"):
        save_weights(small(), tmp_path / "weights.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrapped", [False, True])
def test_prefix_and_wrapping_of_checkpoints(tmp_path: Path, wrapped: bool) -> None:
    model = small()
    state: dict[str, Any] = OrderedDict((f"module.{k}", v) for k, v in model.state_dict().items())
    torch.save({"epoch": 3, "state_dict": state} if wrapped else state, tmp_path / "w.tar")
    loaded = small()
    load_weights(loaded, tmp_path / "w.tar")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert set(read_state_dict(tmp_path / "w.tar")) == set(model.state_dict())


def test_generator_names_contain_module_and_keep_it(tmp_path: Path) -> None:
    torch.save(BlurGenerator().state_dict(), tmp_path / "w.pth")
    load_weights(BlurGenerator(), tmp_path / "w.pth")


def test_backbone_of_a_classifier(shared: Path) -> None:
    path = shared / "weights" / "mobilenet0.25_imagenet.tar"
    detector = RetinaFace()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    load_backbone(detector, path)
    file = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    for name, value in detector.state_dict().items():
        if name.startswith("body."):
            assert torch.equal(value, file[name.replace("body.", "module.", 1)])
        else:
            assert torch.equal(value, before[name])
    assert "RetinaFace" in refusal(detector, path)


def test_backbone_that_does_not_fit(tmp_path: Path) -> None:
    save_weights(small(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="MobileNet025"):
        load_backbone(RetinaFace(), tmp_path / "w.safetensors")
    save_weights(RetinaFace(), tmp_path / "w.safetensors")  # a detector is no classifier
    with pytest.raises(WeightsError, match="MobileNet025"):
        load_backbone(RetinaFace(), tmp_path / "w.safetensors")


def test_backbone_as_torchvision_publishes_it(tmp_path: Path) -> None:
    """ImageNet's classifier is in the file, BatchNorm's step counters are not."""
    classifier = torchvision.models.resnet50().half()
    file = {k: v for k, v in classifier.state_dict().items() if "num_batches" not in k}
    assert {"conv1.weight", "layer4.2.bn3.running_var", "fc.weight"} < file.keys()
    path = tmp_path / "resnet50.pth"
    torch.save(file, path)
    detector = RetinaFace("resnet50", 16)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    load_backbone(detector, path)
    for name, value in detector.state_dict().items():
        expected = file.get(name.removeprefix("body."), before[name])
        assert torch.equal(value, expected.to(value.dtype)), name

    with pytest.raises(WeightsError) as caught:
        load_backbone(RetinaFace(), path)
    assert str(caught.value).startswith(f"{path}: weights of resnet50, but ")
    assert "backbone is mobilenet0.25; change critic.backbone" in str(caught.value)
    save_weights(RetinaFace().body, path.with_suffix(".safetensors"))
    with pytest.raises(WeightsError, match=r"of mobilenet0\.25, but .* backbone is resnet50"):
        load_backbone(detector, path.with_suffix(".safetensors"))
    path.unlink()  # 50 MB


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("channels", [64, 256])
def test_a_file_tells_backbone_and_width(tmp_path: Path, backbone: str, channels: int) -> None:
    path = tmp_path / "detector.safetensors"
    saved = RetinaFace(backbone, channels)
    saved(torch.rand(2, 3, 64, 64) * 255)  # statistics of its own
    for value in saved.state_dict().values():
        value.copy_(value.half())
    save_weights(saved, path, torch.float16)
    loaded = load_retinaface(path)
    path.unlink()  # 50 MB
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    image = torch.rand(1, 3, 50, 70) * 255
    for value, expected in zip(
        loaded.eval()(image, landmarks=True), saved.eval()(image, landmarks=True), strict=True
    ):
        assert torch.equal(value, expected)
    frozen = {name for name, p in loaded.named_parameters() if not p.requires_grad}
    assert frozen == {name for name in dict(loaded.named_parameters()) if "Landmark" in name}


def test_a_released_detector_tells_its_backbone(shared: Path) -> None:
    path = shared / "weights" / "retinaface_mobilenet0.25.pth"
    by_hand = RetinaFace()
    load_weights(by_hand, path)
    loaded = load_retinaface(path).state_dict()
    assert all(torch.equal(loaded[name], v) for name, v in by_hand.state_dict().items())


def test_step_counters_may_be_absent() -> None:
    state = RetinaFace().state_dict()
    bare = {name: value for name, value in state.items() if "num_batches" not in name}
    assert len(bare) < len(state)
    loaded = build_retinaface(bare, Path("w.pth")).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


State = dict[str, Tensor]


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


NO_DETECTOR: dict[str, tuple[Callable[[State], State], str]] = {
    "empty": (lambda s: {}, "not weights of a RetinaFace detector"),
    "backbone alone": (
        lambda s: {k.removeprefix("body."): v for k, v in s.items() if k.startswith("body.")},
        "not weights of a RetinaFace detector",
    ),
    "no pyramid": (
        lambda s: without(s, "fpn.output1.0.weight"),
        "not weights of a RetinaFace detector",
    ),
    "scalar": (
        lambda s: {**s, "fpn.output1.0.weight": torch.tensor(1.0)},
        "not weights of a RetinaFace detector",
    ),
    "width": (lambda s: {**s, "fpn.output1.0.weight": torch.zeros(30, 64, 1, 1)}, "not 30"),
    "missing": (lambda s: without(s, "ssh2.conv3X3.0.weight"), "ssh2.conv3X3.0.weight"),
    "missing statistics": (
        lambda s: without(s, "body.stage1.0.1.running_var"),
        "body.stage1.0.1.running_var",
    ),
    "extra": (lambda s: {**s, "body.fc.bias": torch.zeros(9)}, "difference: body.fc.bias"),
    "another width": (
        lambda s: {**s, "fpn.output1.0.weight": torch.zeros(32, 64, 1, 1)},
        "not weights of RetinaFace (300 tensors, 300 expected",
    ),
    "both backbones": (
        lambda s: {**s, "body.layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)},
        "difference: body.layer1.0.conv1.weight",
    ),
}


@pytest.mark.parametrize("case", NO_DETECTOR)
def test_what_is_no_detector_is_refused(case: str) -> None:
    spoil, words = NO_DETECTOR[case]
    with pytest.raises(WeightsError) as caught:
        build_retinaface(spoil(RetinaFace().state_dict()), Path("folder/w.pth"))
    assert str(caught.value).startswith(f"{Path('folder/w.pth')}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_detector(tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no weights at all")
    for path, words in {
        GENERATOR: r"backbones: mobilenet0\.25, resnet50",
        tmp_path / "nowhere.pth": "no such weight file",
        tmp_path / "broken.pth": "truncated",
    }.items():
        with pytest.raises(WeightsError, match=words) as caught:
            load_retinaface(path)
        assert str(caught.value).startswith(f"{path}: ")
