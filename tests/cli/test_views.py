"""`pyssl-fast views`: people look at the picture; here, that it is whole, what it says, and how errors end."""

import dataclasses

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pyssl_fast.augment import RECIPES, plain
from pyssl_fast.augment.picture import DPI, HEAD, MARGIN, SIDE, _layout, most_draws, steps
from pyssl_fast.cli import main
from tests.data.tiny import write_images


@pytest.fixture
def photos(tmp_path):
    return [str(write_images(tmp_path, 2, size=(50, 40)) / f"{number}.png") for number in range(2)]


def invoke(*arguments):
    return CliRunner().invoke(main, ["views", *map(str, arguments)])


@pytest.mark.parametrize("recipe", ["simclr", "mae", "dino"])
def test_a_picture_of_every_kind_of_recipe(photos, tmp_path, recipe):
    out = tmp_path / "out.png"
    outcome = invoke(*photos, "--recipe", recipe, "--size", 32, "--out", out)
    assert outcome.exit_code == 0, outcome.output
    views = {"simclr": 2, "mae": 1, "dino": 10}[recipe]
    assert f"wrote {out}: 4 draws of {views} views" in outcome.output
    assert "crop " in outcome.output and "fewer than" not in outcome.output
    Image.open(out).load()


def test_the_seed_decides_and_colours_are_not_normalised(photos, tmp_path):
    first, again, other = (tmp_path / name for name in ("first.png", "again.png", "other.png"))
    for out, seed in ((first, 0), (again, 0), (other, 1)):
        assert invoke(photos[1], "--recipe", "mae", "--size", 32, "--out", out, "--seed", seed).exit_code == 0
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    painted = (np.asarray(Image.open(first).convert("RGB")) == (10, 40, 200)).all(2).sum()
    assert painted > 2 * (SIDE * DPI) ** 2  # more than the two images alone, which are not square


def test_what_was_done_is_said_in_order():
    p = plain(
        [(40, 50)],
        (20, 20),
        box=torch.tensor([[0, 0, 20, 25]]),
        horizontal_flip=torch.tensor([True]),
        turns=torch.tensor([1]),
        angle=torch.tensor([-12.0]),
        translate=torch.tensor([[3.0, -2.0]]),
        order=torch.tensor([[3, 1, 0, 2]]),
        jitter=torch.tensor([[True, True, False, True]]),
        factors=torch.tensor([[0.5, 1.25, 9.0, -0.1]]),
        grey=torch.tensor([True]),
        sigma=torch.tensor([1.26]),
        solarize=torch.tensor([True]),
    )
    image = torch.zeros(3, 40, 50)
    said = "crop 25 %, mirrored, turned 90°, turned −12°, moved +3/−2 px, hue −36°, contrast ×1.25, brightness ×0.50"
    assert ", ".join(steps(p, image)) == f"{said}, grey, blurred σ 1.3, solarized"
    first = dataclasses.replace(p, grey_first=True)
    assert ", ".join(steps(first, image)).endswith(
        "px, grey, hue −36°, contrast ×1.25, brightness ×0.50, blurred σ 1.3, solarized"
    )
    assert list(steps(plain([(40, 50)], 20), image)) == ["whole image"]


@pytest.mark.parametrize(
    ("box", "said"),
    [
        *(((995, 1000), "99.5"), ((999, 1000), "99.9"), ((999, 999), "99.8"), ((1000, 999), "99.9")),
        *(((994, 1000), "99"), ((250, 333), "8.3"), ((1, 1000), "0.1"), ((1, 3), "0.0003"), ((100, 1000), "10")),
    ],
)
def test_a_crop_is_said_in_plain_digits_and_is_never_the_whole(box, said):
    image = torch.zeros(3, 1000, 1000)
    p = plain([(1000, 1000)], 20, box=torch.tensor([[0, 0, *box]]))
    assert list(steps(p, image)) == [f"crop {said} %"]


def test_a_crop_of_nearly_all_is_not_all():
    huge = torch.zeros(1, 1, 1).expand(3, 10**4, 10**4)
    almost = plain([(10**4, 10**4)], 20, box=torch.tensor([[0, 0, 10**4, 10**4 - 1]]))
    assert list(steps(almost, huge)) == ["crop 99.9 %"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *(("angle", [0.3], "turned +0.3°"), ("angle", [-0.04], "turned −0.04°"), ("angle", [9.96], "turned +10°")),
        *(("angle", [120.4], "turned +120°"), ("angle", [2.96], "turned +3°"), ("angle", [-99.6], "turned −100°")),
        *(("translate", [[0.25, 0.0]], "moved +0.25/0 px"), ("translate", [[0.0, -7.0]], "moved 0/−7 px")),
        *(("shear", [[0.0, 5.0]], "sheared 0/+5°"), ("shear", [[-20.0, 0.4]], "sheared −20/+0.4°")),
        *(("shear", [[0.5, 0.0]], "sheared +0.5°"), ("sigma", [0.04], "blurred σ 0.04")),
        ("sigma", [2.0], "blurred σ 2"),
    ],
)
def test_small_changes_are_said_too(name, value, said):
    image = torch.zeros(3, 40, 50)
    assert list(steps(plain([(40, 50)], 20, **{name: torch.tensor(value)}), image)) == ["whole image", said]


def test_small_images_are_said_to_be_enlarged(photos, tmp_path):
    outcome = invoke(*photos, "--out", tmp_path / "out.png", "--rows", 1)
    assert outcome.output.count("40 × 50 pixels, fewer than the views' 224 × 224: crops are enlarged") == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "Missing argument 'IMAGE...'"),
        (("x.png", "--recipe", "simsiam"), "'simsiam' is not one of "),
        (("x.png", "--rows", "0"), "'--rows'"),
        (("x.png", "--size", "5000"), "'--size'"),
        (("x.png", "--out", "x.pdf"), "--out must end in .png; got x.pdf"),
        (("x.png", "--seed", "-1"), "'--seed'"),
        (("x.png", "--rows", "999999"), "a picture holds "),
        (("nowhere.png",), "cannot read the image nowhere.png: [Errno 2] No such file"),
        (("nowhere.png", "--out", "/nowhere/at/all.png"), "--out: cannot write /nowhere/at/all.png"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    outcome = invoke(*arguments)
    assert outcome.exit_code in (1, 2) and outcome.stdout == ""
    assert outcome.stderr.startswith("Error: ") and outcome.stderr.count("\n") == 1 and message in outcome.stderr
    assert not list(tmp_path.iterdir())
    if "not one of" in message:
        assert all(f"'{name}'" in outcome.stderr for name in RECIPES)


def test_an_unreadable_image_is_named_and_nothing_is_written(photos, tmp_path):
    (tmp_path / "1.png").write_bytes(b"nothing")
    outcome = invoke(*photos, "--out", tmp_path / "out.png")
    assert outcome.stderr == f"Error: cannot read the image {tmp_path / '1.png'}: not an image\n"
    assert not (tmp_path / "out.png").exists()


def test_matplotlib_is_asked_for(photos, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert invoke(*photos).stderr == "Error: views needs matplotlib: pip install pyssl-fast[train]\n"


@pytest.mark.parametrize("views", [1, 2, 10])
def test_a_picture_holds_what_matplotlib_can_draw(views):
    block = _layout(views)[3]
    sides = [DPI * (HEAD + count * block + MARGIN) for count in (most_draws(views), most_draws(views) + 1)]
    assert sides[0] <= 2**16 < sides[1]


def test_an_image_is_not_written_over(photos, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert invoke(*photos, "--out", "1.png").stderr == "Error: --out is one of the images: 1.png\n"
