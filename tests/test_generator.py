from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.generator import BlurGenerator

PARTS = [("down", 0), ("down", 2), ("up", 0), ("up", 3)]
NAMES = {
    f"{block}{level}.module.{position}.{kind}"
    for block, position in PARTS
    for level in range(5)
    for kind in ("weight", "bias")
}


def halved(x: Tensor) -> Tensor:
    corners = [x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return torch.stack(corners).amax(dim=0)


def shuffled(x: Tensor) -> Tensor:
    """Four channels become one of twice the height and width, row by row."""
    batch, channels, height, width = x.shape
    out = x.new_zeros(batch, channels // 4, 2 * height, 2 * width)
    for row in (0, 1):
        for column in (0, 1):
            out[:, :, row::2, column::2] = x[:, 2 * row + column :: 4]
    return out


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.01 * x)


def by_the_text(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The forward pass as method.md tells it."""

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), weights[f"{name}.weight"], weights[f"{name}.bias"])

    encoder = [x]
    for level in range(5):
        feature = leaky(conv(encoder[-1], f"down{level}.module.0"))
        encoder.append(halved(leaky(conv(feature, f"down{level}.module.2"))))
    down0, down1, down2, down3, decoder = encoder[1:]
    skips = {
        4: lambda d: d + down3,
        3: lambda d: d + down2,
        2: lambda d: torch.cat([d, down1], dim=1),
        1: lambda d: torch.cat([d, down0], dim=1),
    }
    for level, skip in skips.items():
        decoder = shuffled(leaky(conv(decoder, f"up{level}.module.0")))
        decoder = skip(leaky(conv(decoder, f"up{level}.module.3")))
    last = conv(shuffled(leaky(conv(decoder, "up0.module.0"))), "up0.module.3")
    return torch.tanh(last + x[:, :3])


def test_parameters_and_names_are_those_of_the_released_weights() -> None:
    state = BlurGenerator().state_dict()
    assert set(state) == NAMES
    assert sum(value.numel() for value in state.values()) == 12_653_187
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["down0.module.0.weight"] == (32, 4, 3, 3)
    assert shapes["down4.module.2.weight"] == (512, 512, 3, 3)
    assert shapes["up4.module.0.weight"] == (1024, 512, 3, 3)
    assert shapes["up1.module.0.weight"] == (384, 128, 3, 3)
    assert shapes["up0.module.0.weight"] == (384, 128, 3, 3)
    assert shapes["up0.module.3.weight"] == (3, 96, 3, 3)


@torch.no_grad()
def test_forward_follows_the_text() -> None:
    generator = BlurGenerator().double()
    for parameter in generator.parameters():  # so that no level is drowned by another
        parameter.mul_(2.0)
    x = torch.rand(2, 4, 64, 96, dtype=torch.float64) * 2 - 1
    out = generator(x)
    assert out.shape == (2, 3, 64, 96)
    expected = by_the_text(generator.state_dict(), x)
    assert (expected - torch.tanh(x[:, :3])).abs().max() > 0.1
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_output_stays_in_range() -> None:
    generator = BlurGenerator()
    generator.get_parameter("up0.module.3.weight").mul_(1e4)
    out = generator(torch.rand(1, 4, 32, 64) * 2 - 1)
    assert out.shape == (1, 3, 32, 64)
    assert out.abs().max() == 1.0


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 4, 48, 64), (1, 4, 64, 65), (4, 64, 64)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        BlurGenerator()(torch.zeros(shape))
