"""Draw img/overview.png, the training in one figure.

    python img/draw_overview.py --redrawn img/samples_dartblur/eileen_collins.jpg

`--redrawn` is what dartblur.py made of img/samples/eileen_collins.jpg, and is shown as x̂. Without
such a file the face in x̂ is a neutral patch that says g(·). Needs matplotlib.
"""

import argparse
import sys
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

# Started as a script, Python looks for modules in img/ and not in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.blur import face_mask, gaussian_blur
from utils.image_files import PhotoError, read_photo, write_photo

Pixels = NDArray[np.uint8]
Point = tuple[float, float]

HERE = Path(__file__).resolve().parent
SAMPLE = HERE / "samples" / "eileen_collins.jpg"
REDRAWN = HERE / "samples_dartblur" / "eileen_collins.jpg"
FACE = np.array([[176.0, 64.0, 272.0, 180.0]])  # drawn by hand: x1, y1, x2, y2 in pixels
SHOWN = (slice(2, 252), slice(99, 349))  # rows and columns of the thumbnails: head and shoulders
NEUTRAL = 205  # grey of the patch where there is no redrawn picture

WIDTH, HEIGHT = 1600, 700  # pixels; the axes count in them, origin at the left bottom
DPI = 100
SMALL, NORMAL, LARGE = 13.5, 15.0, 21.0  # font sizes in points

# Okabe and Ito's palette: told apart with any colour vision, and by lightness in print.
INK, GREY, BLUE, ORANGE, GREEN = "#222222", "#7a7a7a", "#0072B2", "#D55E00", "#00785a"
TINTS = {GREY: "#eeeeee", BLUE: "#e1eff8", ORANGE: "#fce8dc", GREEN: "#e0f2ec"}


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(
        description="Draw the training in one figure.",
        epilog="Without a redrawn photo the face in x̂ is a neutral patch that says g(·).",
    )
    parser.add_argument(
        "--redrawn",
        type=Path,
        help="what dartblur.py made of img/samples/eileen_collins.jpg "
        "(default: img/samples_dartblur/eileen_collins.jpg where it exists)",
    )
    parser.add_argument(
        "--output", type=Path, default=HERE / "overview.png", help="default: img/overview.png"
    )
    args = parser.parse_args(arguments)
    redrawn: Path | None = args.redrawn or (REDRAWN if REDRAWN.is_file() else None)
    try:
        clean = read_photo(SAMPLE).pixels
        output = None if redrawn is None else read_photo(redrawn).pixels
        if output is not None and output.shape != clean.shape:
            raise PhotoError(f"{redrawn}: is not as large as {SAMPLE}; redraw that very photo")
        write_photo(args.output, draw(clean, output))
    except PhotoError as error:
        print(f"draw_overview.py: {error}", file=sys.stderr)
        return 1
    return 0


def draw(clean: Pixels, redrawn: Pixels | None) -> Pixels:
    """Return the figure, uint8 `[700, 1600, 3]`; both photos are uint8 `[512, 512, 3]`, RGB."""
    with mpl.rc_context({"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}):
        figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axes.set_axis_off()
        draw_generator(axes, clean, redrawn)
        draw_pseudo_labels(axes, clean)
        draw_detectors(axes)
        draw_legend(axes)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def draw_generator(axes: Axes, clean: Pixels, redrawn: Pixels | None) -> None:
    """Draw the way from x to x̂, and the loss that keeps x̂ near plain blur."""
    blurred = gaussian_blur(clean, FACE)
    mask = face_mask(FACE, *clean.shape[:2])[:, :, None]
    result = np.where(mask == 1, np.uint8(NEUTRAL), blurred) if redrawn is None else redrawn

    thumbnail(axes, clean, (100, 500), 160, outline=INK)
    label(axes, (68, 388), "clean photo $x$,\nface boxes $y$", align="left")
    arrow(axes, (180, 500), (340, 500))
    label(axes, (258, 532), "Gaussian blur\nin the boxes")
    thumbnail(axes, blurred, (420, 500), 160)
    label(axes, (420, 402), r"$x_{\mathrm{blur}}$", size=NORMAL)
    thumbnail(axes, np.repeat(mask * np.uint8(255), 3, axis=2), (420, 305), 110)
    label(axes, (355, 305), "mask $m$", align="right")

    u_net(axes, (635, 500), (140, 150))
    arrow(axes, (500, 500), (565, 500))
    arrow(axes, (475, 305), (635, 305), (635, 452))
    label(axes, (553, 323), "4th channel")
    arrow(axes, (705, 500), (760, 500))
    thumbnail(axes, result, (840, 500), 160)
    if redrawn is None:
        label(axes, (840, 502), "g(·)", color=INK)
    label(axes, (840, 402), r"$\hat{x} = m\,g + (1 - m)\,x_{\mathrm{blur}}$", size=NORMAL)

    formula = r"$L_{\mathrm{rev}} = \mathrm{relu}(S(\hat{x}, x_{\mathrm{blur}}) - 20)$"
    block(axes, (630, 648), (310, 76), GREEN, formula, "review convenience")
    arrow(axes, (420, 580), (420, 648), (475, 648), color=GREEN)
    arrow(axes, (840, 580), (840, 648), (785, 648), color=GREEN)


def draw_pseudo_labels(axes: Axes, clean: Pixels) -> None:
    """Draw the way of clean x: to the stepped adversary, and through the critic to t."""
    arrow(axes, (55, 420), (55, 185), (1040, 185))
    label(axes, (1012, 203), "$x$", size=NORMAL)
    arrow(axes, (55, 185), (55, 70), (200, 70))
    block(axes, (295, 70), (190, 76), GREY, "critic $f$", "frozen")
    arrow(axes, (390, 70), (470, 70))
    thumbnail(axes, clean, (525, 70), 110, outline=ORANGE)
    label(axes, (600, 92), "pseudo-labels $t$: the faces that $f$ finds on clean $x$", align="left")
    # One line up to the three losses that are measured against t.
    line(axes, (580, 70), (1555, 70), (1555, 585))
    for height in (585, 390, 185):
        arrow(axes, (1555, height), (1520, height))
    label(axes, (1572, 330), "$t$", size=NORMAL)


def draw_detectors(axes: Axes) -> None:
    """Draw the critic, the adversary and its one step, each with the loss that it gives."""
    line(axes, (920, 500), (1005, 500))
    arrow(axes, (1005, 500), (1005, 585), (1040, 585))
    arrow(axes, (1005, 500), (1005, 390), (1040, 390))
    block(axes, (1135, 585), (190, 76), GREY, "critic $f$", "frozen")
    block(axes, (1135, 390), (190, 76), ORANGE, "adversary $f_g$", r"trains on $\hat{x}$ and $y$")
    block(axes, (1135, 185), (190, 76), ORANGE, "adversary $f_g'$", "one step on")
    arrow(axes, (1135, 352), (1135, 223), color=ORANGE)
    step = "one differentiable Adam step\n" r"on $D(f_g(\hat{x}),\, y)$"
    label(axes, (1152, 288), step, color=ORANGE, align="left")

    losses = (
        (585, r"$L_{\mathrm{proc}} = D(f(\hat{x}),\, t)$", "fidelity before training"),
        (390, r"$L_{\mathrm{post}} = D(f_g(\hat{x}),\, t)$", "fidelity after training"),
        (185, r"$L_{\mathrm{cycl}} = D(f_g'(x),\, t)$", "fidelity across"),
    )
    for height, formula, name in losses:
        arrow(axes, (1230, height), (1270, height), color=GREEN)
        block(axes, (1395, height), (250, 76), GREEN, formula, name)


def draw_legend(axes: Axes) -> None:
    """Say what trains g and what the two measures are."""
    total = r"$L_{\mathrm{rev}} + L_{\mathrm{proc}} + L_{\mathrm{post}} + L_{\mathrm{cycl}}$"
    label(axes, (668, 335), f"$g$ learns from {total}", color=BLUE, align="left")
    label(axes, (668, 292), "$S$: mean smooth L1 inside $m$", align="left")
    label(axes, (668, 249), "$D$: detection loss of RetinaFace", align="left")


def thumbnail(
    axes: Axes, photo: Pixels, centre: Point, side: float, outline: str | None = None
) -> None:
    """Show head and shoulders of `photo` in a square; `outline` colours the box of the face."""
    left, bottom = centre[0] - side / 2, centre[1] - side / 2
    extent = (left, left + side, bottom, bottom + side)
    axes.imshow(photo[SHOWN], extent=extent, interpolation="lanczos", aspect="auto", zorder=2)
    rectangle(axes, (left, bottom), (side, side), INK, 1.2)
    if outline is not None:
        rows, columns = SHOWN
        scale = side / (rows.stop - rows.start)
        x1, y1, x2, y2 = FACE[0]
        corner = (left + (x1 - columns.start) * scale, bottom + (rows.stop - y2) * scale)
        size = ((x2 - x1) * scale, (y2 - y1) * scale)
        rectangle(axes, corner, size, "white", 4)
        rectangle(axes, corner, size, outline, 2)


def rectangle(axes: Axes, corner: Point, size: Point, color: str, width: float) -> None:
    """Draw the outline of a rectangle from its left bottom corner."""
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=width, zorder=3))


def u_net(axes: Axes, centre: Point, size: Point) -> None:
    """Draw the generator: wide, narrow, wide."""
    (x, y), (half_width, half_height) = centre, (size[0] / 2, size[1] / 2)
    waist = 0.62 * half_height
    corners = [
        (x - half_width, y + half_height),
        (x, y + waist),
        (x + half_width, y + half_height),
        (x + half_width, y - half_height),
        (x, y - waist),
        (x - half_width, y - half_height),
    ]
    axes.add_patch(
        Polygon(corners, facecolor=TINTS[BLUE], edgecolor=BLUE, linewidth=2, joinstyle="round")
    )
    label(axes, (x, y + 14), "$g$", size=LARGE, color=BLUE)
    label(axes, (x, y - 20), "U-Net", color=BLUE)


def block(axes: Axes, centre: Point, size: Point, color: str, title: str, caption: str) -> None:
    """Draw a rounded box with a title and a smaller line under it."""
    (x, y), (width, height) = centre, size
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=12",
            facecolor=TINTS[color],
            edgecolor=color,
            linewidth=2,
        )
    )
    label(axes, (x, y + 15), title, size=NORMAL)
    label(axes, (x, y - 18), caption, color=INK)


def label(
    axes: Axes,
    place: Point,
    text: str,
    size: float = SMALL,
    color: str = INK,
    align: Literal["left", "center", "right"] = "center",
) -> None:
    """Write text, vertically centred at `place`."""
    axes.text(*place, text, size=size, color=color, ha=align, va="center", zorder=4)


def line(axes: Axes, *points: Point, color: str = GREY) -> None:
    """Draw a line through the points."""
    axes.plot(*zip(*points, strict=True), color=color, linewidth=2, zorder=1)


def arrow(axes: Axes, *points: Point, color: str = GREY) -> None:
    """Draw a line through the points with a head at the last one."""
    style = "-|>,head_length=7,head_width=4"
    axes.add_patch(
        FancyArrowPatch(
            path=Outline(points),
            arrowstyle=style,
            color=color,
            linewidth=2,
            joinstyle="miter",
            capstyle="butt",
            zorder=1,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
