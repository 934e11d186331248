"""`pyssl-fast views IMAGE…`: what a recipe makes of your images."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import click
import torch

from pyssl_fast.augment import RECIPES, Recipe, Views, apply
from pyssl_fast.cli.options import writable


def _recipe(name: str, size: int) -> Views:
    """For views of that size; local ones as much smaller as in the paper."""
    make = RECIPES[name]
    local = inspect.signature(make).parameters.get("local_size")
    made = make(size) if local is None else make(size, local_size=max(1, round(size * local.default / 224)))
    return Views((made,)) if isinstance(made, Recipe) else made


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option(
    "--recipe", type=click.Choice(list(RECIPES)), default="simclr", show_default=True, help="As in pyssl_fast.augment."
)
@click.option("--out", default="views.png", show_default=True, callback=writable, metavar="FILE", help="A PNG picture.")
@click.option("--rows", type=click.IntRange(1), default=2, show_default=True, help="Draws of every image.")
@click.option(
    "--size", type=click.IntRange(1, 4096), default=224, show_default=True, help="Pixels, of the largest views."
)
@click.option(
    "--seed", type=click.IntRange(0, (1 << 63) - 1), default=0, show_default=True, help="Another one draws other views."
)
def views(images: tuple[Path, ...], recipe: str, out: Path, rows: int, size: int, seed: int) -> None:
    """Draw the views that a recipe makes of images, and say what was done to each."""
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("views needs matplotlib: pip install pyssl-fast[train]")
    if out.suffix.lower() != ".png":
        raise click.ClickException(f"--out must end in .png; got {out}")
    if out.resolve() in (path.resolve() for path in images):
        raise click.ClickException(f"--out is one of the images: {out}")
    from pyssl_fast.augment.picture import Draw, most_draws, sheet
    from pyssl_fast.data.images import DataError, FileImages, to_tensor

    chosen, files = _recipe(recipe, size), FileImages(images, None)
    if (asked := len(images) * rows) > (most := most_draws(len(chosen))):
        raise click.ClickException(f"a picture holds {most} draws of {len(chosen)} views; {asked} were asked for")
    draws = []
    try:
        for i, path in enumerate(images):
            image = to_tensor(files.picture(i))
            height, width = image.shape[1:]
            if min(height, width) < size:
                click.echo(
                    f"{path}: {height} × {width} pixels, fewer than the views' {size} × {size}: crops are enlarged"
                )
            for row in range(rows):
                sampled = chosen.sample([(height, width)], seed=seed, epoch=row, index=torch.tensor([i], device="cpu"))
                draws.append(
                    Draw(
                        path.name if rows == 1 else f"{path.name}, draw {row + 1}",
                        image,
                        [view.name for view in chosen.recipes],
                        sampled,
                        [apply([image], parameters)[0] for parameters in sampled],
                    )
                )
        out.write_bytes(sheet(draws, f"{recipe}, seed {seed}"))
    except (DataError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(chosen)
    click.echo(f"wrote {out}: {len(draws)} draws of {len(chosen)} views")
