"""The two pictures of a run, as PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patheffects import withStroke

from pyssl_fast.data.images import Images
from pyssl_fast.evaluation.protocol import Features, unit

MAPPED_IMAGES = 2000
THUMBNAILS = 400
INK, SOFT, PAPER = "#22252b", "#8a8f99", "#fbfbf9"
PALETTE = (
    "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#7c828c",
)  # fmt: skip


def loss_curve(lines: Sequence[dict[str, Any]], title: str) -> bytes:
    """The loss over the epochs, and below it how the embeddings spread. lines: of metrics.jsonl."""
    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    per_epoch = sum(line["epoch"] == 0 for line in steps)
    x = np.array([line["step"] for line in steps]) / per_epoch
    loss = np.array([line["loss"] for line in steps])
    smooth = _smooth(loss, len(loss) // 30)

    figure = Figure(figsize=(8, 5.6), dpi=150, facecolor=PAPER, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.1))
    top.plot(x, loss, color=PALETTE[0], alpha=0.3, linewidth=0.8)
    top.plot(x, smooth, color=PALETTE[0], linewidth=2.2)
    top.set_title(title, loc="left", fontsize=14, fontweight="bold", color=INK, pad=12)
    top.set_ylabel("loss", color=PALETTE[0])
    top.annotate(
        f"{smooth[-1]:.3f}",
        (x[-1], smooth[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=PALETTE[0],
        fontweight="bold",
        annotation_clip=False,
    )

    at = [line["epoch"] + 1 for line in epochs]
    rank, spread = (np.array([line[name] for line in epochs], dtype=float) for name in ("rank", "spread"))  # null: NaN
    bottom.plot(at, rank, color=PALETTE[2], linewidth=1.8, marker="o", markersize=3)
    bottom.set_ylabel("effective rank", color=PALETTE[2])
    bottom.set_ylim(0, 1.1 * np.nanmax([1.0, *rank]))
    bottom.set_xlabel("epoch")
    right = bottom.twinx()
    right.plot(at, spread, color=PALETTE[4], linewidth=1.8, marker="o", markersize=3)
    right.set_ylabel("spread", color=PALETTE[4])
    right.set_ylim(0, 1.1)
    for axes in (top, bottom, right):
        _plain(axes)
    right.grid(False)
    top.set_xlim(0, x[-1])
    return png(figure)


def embedding_map(features: Features, images: Images, classes: Sequence[str] | None, size: int, title: str) -> bytes:
    """A map on which images with similar features lie close: a point per image coloured by class, or small pictures.

    Args:
        features: [N, D] of the N images.
        images: the images themselves, with labels if there are classes.
        classes: their names, or None.
        size: side of the images, in pixels.
        title: of the picture.
    """
    chosen = np.linspace(0, len(features) - 1, min(MAPPED_IMAGES, len(features))).astype(np.int64)
    if classes is None:
        chosen = chosen[:: max(1, len(chosen) // THUMBNAILS)]
    method, points = flatten(features[chosen])
    figure = Figure(figsize=(8, 8.4), dpi=150, facecolor=PAPER, layout=ConstrainedLayoutEngine(w_pad=0.25, h_pad=0.15))
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", color=INK, pad=24)
    axes.text(
        0, 1.015, f"{method} of the encoder's features, {len(chosen):,} images", transform=axes.transAxes, color=SOFT
    )
    if classes is None or images.labels is None:
        _thumbnails(axes, points, images, chosen, size)
    else:
        _coloured_points(axes, points, images.labels[chosen], classes)
    axes.margins(0.02)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor(PAPER)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return png(figure)


def flatten(features: Features) -> tuple[str, npt.NDArray[np.float64]]:
    """[N, D] -> the name of the method, and [N, 2]. t-SNE by cosine distance; PCA for fewer than 50 images."""
    rows = unit(features)
    if len(rows) < 50 or np.ptp(rows, axis=0).max() < 1e-6:
        centred = (rows - rows.mean(axis=0)).astype(np.float64)
        left, values, _ = np.linalg.svd(centred, full_matrices=False)
        points = np.zeros((len(rows), 2))
        points[:, : min(2, len(values))] = (left * values)[:, :2]
        return "PCA", points
    from sklearn.manifold import TSNE

    perplexity = min(30.0, len(rows) / 4)
    return "t-SNE", TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(rows).astype(np.float64)


def _coloured_points(axes: Axes, points: npt.NDArray[Any], labels: npt.NDArray[Any], classes: Sequence[str]) -> None:
    """Points by class. Ten classes or fewer also get their names written onto their middles; more share the colours."""
    for number, name in enumerate(classes):
        mine = points[labels == number]
        if not len(mine):
            continue
        colour = PALETTE[number % len(PALETTE)]
        marker = "os^Dv"[number // len(PALETTE) % 5]
        axes.scatter(mine[:, 0], mine[:, 1], s=16, color=colour, marker=marker, alpha=0.75, linewidths=0, label=name)
        if len(classes) <= len(PALETTE):
            middle = mine[np.square(mine - np.median(mine, axis=0)).sum(axis=1).argmin()]
            axes.text(
                middle[0], middle[1], name, color=INK, fontsize=11, fontweight="bold", ha="center", va="center",
                path_effects=[withStroke(linewidth=3, foreground="white")], parse_math=False,
            )  # fmt: skip
    if len(classes) <= 5 * len(PALETTE):
        legend = axes.figure.legend(
            loc="outside lower center", ncols=min(len(classes), 5), frameon=False, markerscale=1.8, labelcolor=INK
        )
        for handle in filter(None, legend.legend_handles):
            handle.set_alpha(1)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _thumbnails(axes: Axes, points: npt.NDArray[Any], images: Images, chosen: npt.NDArray[np.int64], size: int) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=0)
    for point, index in zip(points, chosen, strict=True):
        pixels = images.square(int(index), size).permute(1, 2, 0).numpy()
        pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
        axes.add_artist(AnnotationBbox(OffsetImage(pixels, zoom=14 / size), tuple(point), frameon=False, pad=0))


def _smooth(values: npt.NDArray[np.float64], reach: int) -> npt.NDArray[np.float64]:
    """Mean over each value and `reach` values on either side of it: fewer near the start, none beyond the end."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reaches = np.minimum(at, reach)
    start, stop = at - reaches, np.minimum(at + reaches + 1, len(values))
    return np.asarray((sums[stop] - sums[start]) / (stop - start))


def _plain(axes: Axes) -> None:
    axes.set_facecolor(PAPER)
    axes.grid(axis="y", color="#e4e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, length=0)
    axes.xaxis.label.set_color(SOFT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the names of classes may be in any script
        figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()
