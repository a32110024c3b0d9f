from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from models.anchors import anchor_grid
from models.detector_training import detector_ap
from models.retinaface import BACKBONES, Predictions, RetinaFace
from models.weights import load_weights
from tests.objective_scene import Scene
from utils import config
from utils.face_dataset import validation_source

RELEASED = "retinaface_mobilenet0.25.pth"

both_backbones = pytest.mark.parametrize("backbone", BACKBONES)


class FedBgr(RetinaFace):
    """Sees the colours in the wrong order."""

    def forward(self, images: Tensor, landmarks: bool = False) -> Predictions:
        return super().forward(images.flip(1), landmarks)


@pytest.fixture(scope="module")
def released(shared: Path) -> RetinaFace:
    detector = RetinaFace()
    load_weights(detector, shared / "weights" / RELEASED)
    return detector.eval()


def test_tensors_and_values() -> None:
    state = RetinaFace().state_dict()
    assert len(state) == 300
    assert sum(value.numel() for value in state.values()) == 433_343


def test_released_weights_load_strictly(shared: Path, released: RetinaFace) -> None:
    file = torch.load(shared / "weights" / RELEASED, map_location="cpu", weights_only=True)
    names = {name.removeprefix("module.") for name in file}
    assert names == set(released.state_dict())
    for name, value in file.items():
        assert torch.equal(released.state_dict()[name.removeprefix("module.")], value)


def test_resnet_has_the_names_of_torchvision_without_the_classifier() -> None:
    ours = {name: value.shape for name, value in RetinaFace("resnet50").state_dict().items()}
    theirs = torchvision.models.resnet50().state_dict()
    assert {name: shape for name, shape in ours.items() if name.startswith("body.")} == {
        f"body.{name}": value.shape for name, value in theirs.items() if name.split(".")[0] != "fc"
    }
    rest = {name for name in RetinaFace().state_dict() if not name.startswith("body.")}
    assert {name for name in ours if not name.startswith("body.")} == rest


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_resnet_features_are_those_inside_torchvision(training: bool) -> None:
    body = RetinaFace("resnet50").body.train(training)
    reference = torchvision.models.resnet50().train(training)
    reference.load_state_dict(body.state_dict(), strict=False)
    inside: list[Tensor] = []
    for layer in (reference.layer2, reference.layer3, reference.layer4):
        layer.register_forward_hook(lambda module, inputs, output: inside.append(output))
    images = torch.randn(2, 3, 64, 40)
    reference(images)
    features = body(images)
    assert [tuple(feature.shape) for feature in features] == [
        (2, 512, 8, 5),
        (2, 1024, 4, 3),
        (2, 2048, 2, 2),
    ]
    for feature, expected in zip(features, inside, strict=True):
        assert torch.equal(feature, expected)
        assert feature.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(("channels", "slope"), [(32, 0.1), (64, 0.1), (68, 0.0), (256, 0.0)])
def test_wide_pyramids_do_not_leak(channels: int, slope: float) -> None:
    detector = RetinaFace("mobilenet0.25", channels).eval()
    for block, width in (
        (detector.fpn.output1, detector.body.channels[0]),
        (detector.fpn.merge2, channels),
        (detector.ssh1.conv5X5_1, channels),
        (detector.ssh3.conv7X7_2, channels // 4),
    ):
        x = torch.randn(1, width, 6, 6)
        convolved = block[1](block[0](x))
        assert (convolved < 0).any()
        expected = convolved.clamp(min=0) + slope * convolved.clamp(max=0)
        torch.testing.assert_close(block(x), expected, rtol=0, atol=0)
    mobilenet = [m.negative_slope for m in detector.body.modules() if isinstance(m, nn.LeakyReLU)]
    assert set(mobilenet) == {0.1}  # whatever the pyramid


@torch.no_grad()
@both_backbones
@pytest.mark.parametrize("channels", [64, 256])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (100, 37), (1, 1)])
def test_one_prediction_an_anchor_at_any_size(
    backbone: str, channels: int, height: int, width: int
) -> None:
    detector = RetinaFace(backbone, channels).eval()
    images = torch.rand(2, 3, height, width) * 255
    predictions = detector(images, landmarks=True)
    anchors = len(anchor_grid(height, width, torch.device("cpu")))
    assert predictions.offsets.shape == (2, anchors, 4)
    assert predictions.logits.shape == (2, anchors, 2)
    assert predictions.landmarks is not None
    assert predictions.landmarks.shape == (2, anchors, 10)
    assert detector(images).landmarks is None


@torch.no_grad()
def test_mean_is_subtracted_in_the_order_red_green_blue() -> None:
    detector = RetinaFace().eval()
    seen: list[Tensor] = []
    detector.body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 64, 64) * 255
    detector(images)
    for channel, mean in enumerate((104, 117, 123)):
        assert torch.equal(seen[0][:, channel], images[:, channel] - mean)


@torch.no_grad()
def test_predictions_come_in_the_order_of_the_anchors() -> None:
    """A head that reports its own cell: what it says of a place must stand at that anchor."""
    detector = RetinaFace().eval()

    class Ramp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows, columns = torch.meshgrid(*map(torch.arange, x.shape[2:]), indexing="ij")
            ramp = torch.stack([rows, columns]).float()
            return torch.cat([ramp, x.new_zeros(62, *x.shape[2:])]).expand(len(x), -1, -1, -1)

    detector.ssh1, detector.ssh2, detector.ssh3 = (Ramp() for _ in range(3))  # type: ignore[assignment]
    for level in range(3):
        weight = detector.get_parameter(f"BboxHead.{level}.conv1x1.weight").zero_()
        bias = detector.get_parameter(f"BboxHead.{level}.conv1x1.bias")
        bias.copy_(torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 0]))  # [anchor, value]
        for anchor in (0, 1):
            weight[4 * anchor, 1] = 1.0  # value 0: the column
            weight[4 * anchor + 1, 0] = 1.0  # value 1: the row
    said = detector(torch.zeros(1, 3, 96, 64)).offsets[0]
    anchors = anchor_grid(96, 64, torch.device("cpu"))
    stride = torch.tensor([8] * (12 * 8 * 2) + [16] * (6 * 4 * 2) + [32] * (3 * 2 * 2))
    torch.testing.assert_close((said[:, 0] + 0.5) * stride, anchors[:, 0])
    torch.testing.assert_close((said[:, 1] + 0.5) * stride, anchors[:, 1])
    # Each stride's sides are s and 2 s; the bias marks the second of a cell's two anchors.
    smaller_side = 2 * stride * torch.where(stride > 8, stride / 8, 1).clamp(max=4)
    torch.testing.assert_close(said[:, 2], anchors[:, 2] / smaller_side - 1)


@both_backbones
def test_landmark_head_is_frozen_and_unused_by_the_method(backbone: str) -> None:
    detector = RetinaFace(backbone)
    frozen = {name for name, p in detector.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name, _ in detector.named_parameters() if name.startswith("LandmarkHead")
    }
    predictions = detector(torch.rand(2, 3, 64, 64) * 255)
    (predictions.offsets.sum() + predictions.logits.sum()).backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name


def test_another_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'resnet18'; available: mobilenet0\.25, resnet50"):
        RetinaFace("resnet18")
    assert tuple(BACKBONES) == config.BACKBONES  # what critic.backbone may be


@pytest.mark.parametrize("channels", [-4, 0, 2, 30])
def test_a_width_that_cannot_be_quartered_is_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4, not {channels}"):
        RetinaFace(channels=channels)


def test_second_order_gradient_through_resnet() -> None:
    """L_cycl of a ResNet-50 adversary reaches x̂ through the step: finite, and the slope is right.

    BatchNorm's running statistics count as constants, so they are held still.
    """
    scene = Scene(warm_steps=1, backbone="resnet50")
    assert isinstance(scene.adversary.body, BACKBONES["resnet50"])
    for module in scene.adversary.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    redrawn = scene.blurred.clone().requires_grad_()
    cycl = scene.objectives(redrawn)["cycl"]
    (gradient,) = torch.autograd.grad(cycl, redrawn)
    assert torch.isfinite(gradient).all()
    step, direction = 1e-7, torch.randn_like(gradient)
    moved = scene.objectives(scene.blurred + step * direction)["cycl"]
    slope = (gradient * direction).sum().item()
    assert slope == pytest.approx((moved.item() - cycl.item()) / step, rel=1e-2)  # 1e-3 seen


def test_average_precision_on_validation_photos(shared: Path, released: RetinaFace) -> None:
    """0.962 on all 300 photos (../shared/data.md); every eighth photo gives 0.915."""
    source = validation_source(shared / "widerface")
    source = replace(source, photos=source.photos[::8])
    ap, faces = detector_ap(released, source)
    assert faces > 100
    assert ap >= 0.9
    bgr = FedBgr().eval()
    bgr.load_state_dict(released.state_dict())
    assert detector_ap(bgr, source)[0] < ap - 0.03
