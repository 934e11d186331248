"""Views beside their images, and in words what was done to each."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from pyssl_fast.augment.parameters import BRIGHTNESS, CONTRAST, HUE, SATURATION, Parameters
from pyssl_fast.evaluation.pictures import INK, PALETTE, PAPER, png

FACTORS = {BRIGHTNESS: "brightness", CONTRAST: "contrast", SATURATION: "saturation", HUE: "hue"}
MOST_COLUMNS = 6
MOST_PIXELS = 1 << 16  # along a side, of matplotlib's pictures
DPI = 150
# Inches: a picture's side, what is said below it, the spaces between pictures and between draws, the margin, the title.
SIDE, WORDS, GAP, BETWEEN, MARGIN, HEAD = 2.2, 0.8, 0.22, 0.05, 0.3, 0.75
LETTERS = 40  # of a line below a picture


@dataclass(frozen=True)
class Draw:
    """One image and what was drawn for it.

    Attributes:
        title: of the image, in a few words.
        image: [C, H, W] uint8.
        names: of the views.
        parameters: of each view, of one sample.
        views: [C, height, width] each, as augmented, normalised where the parameters say so.
    """

    title: str
    image: Tensor
    names: Sequence[str]
    parameters: Sequence[Parameters]
    views: Sequence[Tensor]


def _short(number: float) -> str:
    """Two digits that count, or the whole number: 120, 12, 1.2, −0.012; without zeros at the end."""
    if number == 0:
        return "0"
    decimals = max(0, 1 - math.floor(math.log10(abs(number))))
    text = f"{number:.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if decimals else text).replace("-", "−")


def steps(p: Parameters, image: Tensor) -> Iterator[str]:
    """What the first sample's operations do to that image [C, H, W], in their order, each in a word or two."""

    def signed(*numbers: float) -> str:
        return "/".join("+" * (number > 0) + _short(number) for number in numbers)

    height, width = p.box[0, 2:].tolist()
    percent = 100 * height * width / (image.shape[-2] * image.shape[-1])
    if percent == 100:
        yield "whole image"
    else:
        yield f"crop {_short(percent) if percent < 99.5 else f'{min(percent, 99.9):.1f}'} %"
    if p.horizontal_flip[0]:
        yield "mirrored"
    if p.vertical_flip[0]:
        yield "upside down"
    if p.turns[0]:
        yield f"turned {90 * int(p.turns[0])}°"
    if p.angle[0]:
        yield f"turned {signed(float(p.angle[0]))}°"
    if p.translate[0].any():
        yield f"moved {signed(*p.translate[0].tolist())} px"
    if p.zoom[0] != 1:
        yield f"zoomed ×{float(p.zoom[0]):.2f}"
    if p.shear[0].any():
        along_x, along_y = p.shear[0].tolist()
        yield f"sheared {signed(along_x, along_y) if along_y else signed(along_x)}°"
    if p.grey[0] and p.grey_first:
        yield "grey"
    for k in p.order[0].tolist():
        if p.jitter[0, k]:
            factor = float(p.factors[0, k])
            yield f"hue {signed(360 * factor)}°" if k == HUE else f"{FACTORS[k]} ×{factor:.2f}"
    if p.grey[0] and not p.grey_first:
        yield "grey"
    if p.sigma[0]:
        yield f"blurred σ {_short(float(p.sigma[0]))}"
    if p.solarize[0]:
        yield "solarized"
    if p.invert[0]:
        yield "inverted"
    if p.bits[0]:
        yield f"{int(p.bits[0])} bits"
    if p.erase[0, 2]:
        yield "erased {2} × {3} px".format(*p.erase[0].tolist())


def _layout(views: int) -> tuple[int, int, int, float]:
    """Of a draw: columns for the image, lines, columns, inches of height."""
    wide = 1 if views < MOST_COLUMNS else 2  # many frames are to be told apart
    lines = math.ceil((wide + views) / MOST_COLUMNS)
    return wide, lines, math.ceil((wide + views) / lines), lines * (SIDE + WORDS) + BETWEEN


def most_draws(views: int) -> int:
    """How many draws of so many views a picture can hold."""
    return int((MOST_PIXELS / DPI - HEAD - MARGIN) / _layout(views)[3])


def sheet(draws: Sequence[Draw], title: str) -> bytes:
    """PNG: each draw's image, its crops framed, and its views. `most_draws` of them at most."""
    wide, _, columns, block = _layout(max(len(draw.views) for draw in draws))
    width = max(2 * MARGIN + columns * (SIDE + GAP) - GAP, 5.5)
    height = HEAD + len(draws) * block + MARGIN
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    figure.text(
        MARGIN / width, 1 - 0.28 / height, title, fontsize=14, fontweight="bold", color=INK, va="top", parse_math=False
    )
    for i, draw in enumerate(draws):
        for slot in range(1 + len(draw.views)):
            line, column = divmod(slot + (wide - 1 if slot else 0), columns)
            x = MARGIN + column * (SIDE + GAP)
            y = height - (HEAD + i * block + line * (SIDE + WORDS) + SIDE)
            broad = SIDE if slot else wide * (SIDE + GAP) - GAP
            axes = figure.add_axes((x / width, y / height, broad / width, SIDE / height), anchor="SW")
            axes.set_axis_off()
            if slot == 0:
                _image(axes, draw)
            else:
                _view(axes, draw, slot - 1)
    return png(figure)


def _say(axes: Axes, heading: str, colour: str, words: Iterable[str]) -> None:
    unbroken = [word.replace(" ", "\N{NO-BREAK SPACE}") for word in words]
    lines = "\n".join(textwrap.wrap(", ".join(unbroken), LETTERS, break_on_hyphens=False))
    for text, below, size, weight, shade in ((heading, 5, 8, "bold", colour), (lines, 18, 7, "normal", INK)):
        axes.annotate(
            text, (0, 0), (0, -below), "axes fraction", "offset points", va="top", fontsize=size, fontweight=weight,
            color=shade, linespacing=1.25, parse_math=False, annotation_clip=False,
        )  # fmt: skip


def _colour(view: int) -> str:
    return PALETTE[view % len(PALETTE)]


def _image(axes: Axes, draw: Draw) -> None:
    _, height, width = draw.image.shape
    step = max(1, max(height, width) // 1000)  # more pixels than are shown
    axes.imshow(draw.image[:, ::step, ::step].permute(1, 2, 0).numpy(), extent=(0, width, height, 0))
    _say(axes, draw.title, INK, [f"{height} × {width} pixels"])
    for view, parameters in enumerate(draw.parameters):
        top, left, tall, wide = parameters.box[0].tolist()
        axes.add_patch(Rectangle((left, top), wide, tall, fill=False, linewidth=1.6, color=_colour(view)))
        axes.annotate(
            str(view + 1), (left, top), (3, -3), textcoords="offset points", va="top", fontsize=8, fontweight="bold",
            color=_colour(view), path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def _view(axes: Axes, draw: Draw, view: int) -> None:
    parameters, x = draw.parameters[view], draw.views[view]
    if parameters.mean:
        mean, std = (
            torch.tensor(numbers, device="cpu")[:, None, None] for numbers in (parameters.mean, parameters.std)
        )
        x = x * std + mean
    pixels = (x * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()  # matplotlib rounds floats down
    axes.imshow(pixels, interpolation="nearest")
    height, width = parameters.size
    _say(axes, f"{view + 1}  {draw.names[view]}, {height} × {width}", _colour(view), steps(parameters, draw.image))
