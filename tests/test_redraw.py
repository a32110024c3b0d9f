from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import utils.tiles
from models.generator import BlurGenerator
from models.redraw import RedrawError, redraw, redraw_tiles, redraw_whole_frame
from utils.boxes import Boxes, as_boxes
from utils.tiles import frame_masks, plan_batch

NO_FACES: Boxes = np.zeros((0, 4))


class Recorder(nn.Module):
    """Answers with its own weight everywhere and remembers what it was shown."""

    def __init__(self, answer: float = 0.5) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.answer.expand(len(x), 3, *x.shape[2:])

    def pixels(self) -> int:
        return sum(x.shape[0] * x.shape[2] * x.shape[3] for x in self.seen)


class ChannelMirror(nn.Module):
    """Shows what it sees, R and B swapped: every pixel has an answer of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, [2, 1, 0]]


def photos(*shape: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))


def covered(boxes: Boxes, height: int, width: int) -> np.ndarray:
    """The pixels that the boxes touch, one by one."""
    mask = np.zeros((height, width), dtype=bool)
    for x1, y1, x2, y2 in boxes.tolist():
        for y in range(height):
            for x in range(width):
                mask[y, x] |= x + 1 > x1 and x < x2 and y + 1 > y1 and y < y2
    return mask


FACES: dict[str, list[list[float]]] = {
    "one": [[20.4, 11.7, 50.2, 44.9]],
    "overlapping, of several levels": [[5, 5, 85, 95], [10, 20, 45, 44], [40, 40, 60, 58]],
    "at the edges": [[-9, -4, 12, 13.5], [84.5, 80, 130, 170], [40, 90.2, 70, 97]],
    "whole frame": [[0, 0, 90, 97]],
}


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("boxes", FACES.values(), ids=FACES.keys())
def test_only_the_boxes_change_and_all_of_them(boxes: list[list[float]], kind: torch.dtype) -> None:
    """The frame's sides are no multiples of 32."""
    faces = as_boxes(boxes)
    blurred = photos(2, 3, 97, 90).to(kind)
    if kind == torch.float32:
        blurred += 0.37
    before = blurred.clone()
    with torch.no_grad():
        redrawn = redraw(Recorder(1.0), blurred, [faces, NO_FACES], face_size=32, context=8)
    assert redrawn.dtype == kind
    assert redrawn.shape == blurred.shape
    assert torch.equal(blurred, before)
    inside = torch.from_numpy(covered(faces, 97, 90))
    assert (redrawn[0][:, inside] == 255).all()
    assert torch.equal(redrawn[0][:, ~inside], blurred[0][:, ~inside])
    assert torch.equal(redrawn[1], blurred[1])


@pytest.mark.parametrize("box", [[10.9, 10.9, 20.1, 20.1], [10.0, 10.0, 20.0, 20.0]])
def test_a_box_is_covered_entirely(box: list[float]) -> None:
    """Trap 8: no rim of skin is left where a box ends within a pixel."""
    redrawn = redraw(Recorder(-1.0), photos(1, 3, 64, 64) | 1, [as_boxes([box])], 128, 16)
    rows, columns = (redrawn[0].amax(dim=0) == 0).nonzero(as_tuple=True)
    last = 20 if box[2] > 20 else 19
    assert (int(rows.min()), int(rows.max())) == (10, last)
    assert (int(columns.min()), int(columns.max())) == (10, last)
    mask = frame_masks([as_boxes([box])], 64, 64)
    assert mask.shape == (1, 1, 64, 64)
    assert mask.dtype == torch.uint8
    assert torch.equal(mask[0, 0].bool(), redrawn[0].amax(dim=0) == 0)


def test_pixels_come_back_to_their_place() -> None:
    """At full scale, every face through whichever tile: what goes in comes out, mirrored."""
    boxes = [as_boxes([[3, 5, 40, 30], [30, 20, 70, 60], [150, 90, 199, 140]]), NO_FACES]
    boxes.append(as_boxes([[100, 7, 120, 31]]))
    blurred = photos(3, 3, 143, 201)
    redrawn = redraw(ChannelMirror(), blurred, boxes, face_size=64, context=4)
    for image, faces in enumerate(boxes):
        inside = torch.from_numpy(covered(faces, 143, 201))
        expected = torch.where(inside, blurred[image].flip(0), blurred[image])
        assert torch.equal(redrawn[image], expected)


def test_calls_of_bounded_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    corners = [[x, y, x + 20, y + 20] for x in range(5, 600, 100) for y in range(5, 400, 100)]
    faces, blurred = [as_boxes(corners)], photos(1, 3, 400, 600)
    whole = Recorder()
    expected = redraw(whole, blurred, faces, 64, 0)
    monkeypatch.setattr(utils.tiles, "MAX_PIXELS", 2 * 64 * 64)
    parts = Recorder()
    assert torch.equal(redraw(parts, blurred, faces, 64, 0), expected)
    assert all(x.shape[0] * x.shape[2] * x.shape[3] <= 2 * 64 * 64 for x in parts.seen)
    assert len(parts.seen) > len(whole.seen)
    assert parts.pixels() == whole.pixels()


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_plan_made_beforehand(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In many small calls, and used again for other pixels, it does what `redraw` does."""
    corners = [[70, 4, 80.5, 12], [2.0, 60, 30, 80], [50.0, 5, 60, 15], [60.0, 60, 75, 78]]
    boxes = [NO_FACES, *map(as_boxes, FACES.values()), as_boxes(corners)]
    mask = frame_masks(boxes, 97, 90)
    inside = torch.from_numpy(np.stack([covered(faces, 97, 90) for faces in boxes]))
    assert torch.equal(mask[:, 0].bool(), inside)
    expected = {}
    for seed in (0, 1):
        blurred = photos(len(boxes), 3, 97, 90, seed=seed).to(kind)
        expected[seed] = redraw(ChannelMirror(), blurred, boxes, face_size=24, context=8)
    monkeypatch.setattr(utils.tiles, "MAX_PIXELS", 32 * 32)
    plan = plan_batch(boxes, 97, 90, face_size=24, context=8)
    assert {group.level for group in plan.groups} == {0, 1, 2, 3}
    shapes = [(group.level, group.side) for group in plan.groups]
    assert len(shapes) > len(set(shapes))  # some are split
    for seed in (0, 1):
        blurred = photos(len(boxes), 3, 97, 90, seed=seed).to(kind)
        before = blurred.clone()
        assert torch.equal(redraw_tiles(ChannelMirror(), blurred, mask, plan), expected[seed])
        assert torch.equal(blurred, before)
        # Exactly the mask is pasted: a generator that answers white leaves white there alone.
        white = redraw_tiles(Recorder(1.0), blurred, mask, plan).permute(0, 2, 3, 1)
        assert (white[inside] == 255).all()
        assert torch.equal(white[~inside], blurred.permute(0, 2, 3, 1)[~inside])


def test_what_the_generator_is_shown() -> None:
    blurred = photos(1, 3, 50, 120).float()
    faces = as_boxes([[4.0, 4, 20, 20], [40.0, 10, 60, 30], [10.5, 18, 30, 29]])
    recorder = Recorder()
    redraw(recorder, blurred, [faces], face_size=128, context=4)
    (shown,) = recorder.seen
    # One tile around all three; the frame's lowest 14 rows of it do not exist.
    assert shown.shape == (1, 4, 64, 64)
    torch.testing.assert_close((shown[0, :3, :50] + 1) * 127.5, blurred[0, :, :, :64])
    mask = torch.from_numpy(covered(faces, 50, 120))
    assert torch.equal(shown[0, 3, :50].bool(), mask[:, :64])
    assert not shown[0, :, 50:].any()


def test_a_large_face_is_shown_at_reduced_scale() -> None:
    blurred = photos(1, 3, 1000, 1100)
    faces = as_boxes([[200, 150, 800, 790]])
    recorder = Recorder()
    redraw(recorder, blurred, [faces], face_size=128, context=16)
    (shown,) = recorder.seen
    # 640 px at an eighth of the scale, 16 px of it around, to the lattice of 32 px.
    assert shown.shape[2] <= 80 + 2 * 16 + 2 * 31
    assert shown.shape[3] <= 75 + 2 * 16 + 2 * 31
    assert recorder.pixels() < 1000 * 1100 / 50
    # The tile starts at the frame's corner: 128 px around the face, to the lattice of 256 px.
    cells = blurred[0].float().unfold(1, 8, 8).unfold(2, 8, 8).mean(dim=(3, 4)) / 127.5 - 1
    torch.testing.assert_close(shown[0, :3, :120, :100], cells[:, :120, :100])
    # The mask covers every cell that the face touches: rows 150-789 are in cells 18-98.
    rows, columns = shown[0, 3].nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max())) == (18, 98)
    assert (int(columns.min()), int(columns.max())) == (25, 99)
    assert set(shown[0, 3].unique().tolist()) == {0.0, 1.0}


def test_a_small_face_is_never_reduced_by_a_large_one() -> None:
    recorder = Recorder()
    faces = as_boxes([[20, 20, 620, 620], [300, 300, 340, 340]])
    redraw(recorder, photos(1, 3, 640, 640), [faces], face_size=128, context=0)
    areas = sorted(float(x[:, 3].sum()) for x in recorder.seen)
    sizes = sorted(tuple(x.shape[2:]) for x in recorder.seen)
    assert sizes == [(64, 64), (96, 96)]
    assert areas == [64 * 64, 76 * 76]  # the small one's tile lies inside the large face


def test_smooth_content_survives_the_change_of_scale() -> None:
    rows, columns = torch.meshgrid(torch.arange(512.0), torch.arange(512.0), indexing="ij")
    ramp = torch.stack([rows / 4, columns / 4, (rows + columns) / 8])[None] + 60
    redrawn = redraw(ChannelMirror(), ramp, [as_boxes([[40, 60, 470, 460]])], 128, 16)
    inside = (slice(None), slice(60, 460), slice(40, 470))
    torch.testing.assert_close(redrawn[0][inside], ramp[0].flip(0)[inside], rtol=0, atol=0.05)


def shallow_u_net() -> BlurGenerator:
    """A generator whose deep levels matter as much as its shallow ones."""
    torch.manual_seed(3)
    generator = BlurGenerator().eval()
    for parameter in generator.parameters():
        parameter.data *= 2.0
    return generator


def test_tiles_with_full_context_equal_the_whole_frame() -> None:
    """Beyond the receptive radius of about 186 px nothing matters; short of it something does."""
    generator = shallow_u_net()
    blurred = photos(1, 3, 50, 700, seed=4).float()
    faces = [as_boxes([[300.5, 10, 330, 37.2], [322.0, 20, 350, 48]])]
    with torch.no_grad():
        whole = redraw_whole_frame(generator, blurred, faces)
        far = redraw(generator, blurred, faces, face_size=128, context=192)
        near = redraw(generator, blurred, faces, face_size=128, context=0)
        recorder = Recorder()
        redraw(recorder, blurred, faces, face_size=128, context=192)
    assert recorder.pixels() <= 64 * 512  # the comparison is not one of the frame with itself
    inside = frame_masks(faces, 50, 700)[0, 0].bool()
    assert (whole - blurred)[0][:, inside].abs().mean() > 10
    torch.testing.assert_close(far, whole, rtol=0, atol=1e-3)
    assert (near - whole).abs().max() > 0.1


class InDouble(nn.Module):
    """The generator without float32's rounding, which flips kinks of the LeakyReLU."""

    def __init__(self, generator: BlurGenerator) -> None:
        super().__init__()
        self.generator = generator.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.generator(x.double())


@pytest.mark.parametrize(
    ("height", "width", "pixels"), [(96, 70, 96 * 96 * 2), (30, 420, 32 * 512)]
)
def test_gradient_is_that_of_the_whole_frame(height: int, width: int, pixels: int) -> None:
    """With full context, where the tiles are the frame and where they are a part of it."""
    generator = InDouble(shallow_u_net())
    blurred = photos(2, 3, height, width, seed=5).float()
    faces = [as_boxes([[5.0, 5, 30, 40], [20.5, 30, 60, 80]]), as_boxes([[40, 2, 69, 31]])]
    recorder = Recorder()
    redraw(recorder, blurred, faces, face_size=128, context=192)
    assert recorder.pixels() == pixels
    pull = torch.randn(2, 3, height, width)
    gradients = []
    for draw in (
        lambda: redraw(generator, blurred, faces, face_size=128, context=192),
        lambda: redraw_whole_frame(generator, blurred, faces),
    ):
        loss = (draw() * pull).sum()
        gradients.append(torch.autograd.grad(loss, list(generator.parameters())))
    for tiled, whole in zip(*gradients, strict=True):
        assert whole.abs().max() > 0
        torch.testing.assert_close(tiled, whole, rtol=1e-6, atol=1e-6 * float(whole.abs().max()))


def test_large_faces_pass_gradients_too() -> None:
    recorder = Recorder(0.1)
    redrawn = redraw(
        recorder, photos(1, 3, 300, 300).float(), [as_boxes([[10, 10, 290, 290]])], 64, 8
    )
    (gradient,) = torch.autograd.grad(redrawn.sum(), recorder.answer)
    assert gradient.item() == pytest.approx(127.5 * 3 * 280 * 280, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(RedrawError, match="not finite"):
        redraw(Recorder(bad), photos(1, 3, 64, 64), [as_boxes([[5, 5, 40, 40]])], 128, 16)


def test_values_out_of_range_are_cut_off() -> None:
    faces = [as_boxes([[5, 5, 40, 40]])]
    for answer, level in ((1.3, 255), (-1.3, 0), (0.1, 140)):
        redrawn = redraw(Recorder(answer), photos(1, 3, 64, 64), faces, 128, 16)
        assert (redrawn[0, :, 5:40, 5:40] == level).all()


@pytest.mark.parametrize("boxes", [[], [[5, 5, 6, 40]], [[80, 5, 90, 20]], [[30, 30, 10, 10]]])
def test_without_faces_the_generator_rests(boxes: list[list[float]]) -> None:
    recorder, blurred = Recorder(), photos(1, 3, 70, 70)
    redrawn = redraw(recorder, blurred, [as_boxes(boxes)], 128, 16)
    assert not recorder.seen
    assert torch.equal(redrawn, blurred)
    redrawn += 1
    assert not torch.equal(redrawn, blurred)  # a copy, not the photo itself
