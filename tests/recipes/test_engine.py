"""The engine: the same result whatever happens on the way."""

import dataclasses
import errno
import os
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyssl_fast.data import DataError
from pyssl_fast.data.loader import Batch
from pyssl_fast.recipes.engine import (
    CHECKPOINT,
    METRICS,
    EpochReport,
    Interrupted,
    Machine,
    StepReport,
    Training,
    TrainingError,
    resume_state,
    schedule_factor,
    settle,
)
from pyssl_fast.recipes.files import load_checkpoint, read_metrics, save_checkpoint
from pyssl_fast.recipes.recipe import Budget, Recipe, option
from pyssl_fast.recipes.simclr import SimCLR
from tests.data.tiny import write_fashion, write_images

TIMES = ("seconds", "images_per_second", "loss_share", "training_seconds")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return write_fashion(tmp_path_factory.mktemp("data"), count=40, size=16)


def begin(data_folder, out, resume=False, workers=0, **given):
    """12 steps, 6 per epoch, the last of them on images that one epoch leaves out."""
    out.mkdir(exist_ok=True)
    given = {"method": "simclr", "data": f"fashion-mnist:{data_folder}", "batch_size": 6, "epochs": 2, **given}
    state = resume_state(out) if resume else None
    settings, data = settle(given, state["settings"] if state else None)
    return Training(settings, data, Machine("cpu", workers=workers), out, state)


def run(training, stop_at=None):
    """Train; ask to stop when a step is done."""
    for report in training.train():
        if isinstance(report, StepReport) and report.step == stop_at:
            training.stop_requested = True
    return training


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key not in TIMES)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def result(out):
    """Everything that must not depend on interruptions: the checkpoint and the metrics, but for times."""
    state = load_checkpoint(out / CHECKPOINT)
    del state["metrics_length"], state["seconds"], state["epoch"]
    lines = [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(out / METRICS)]
    return state, lines


@pytest.fixture(scope="module")
def uninterrupted(data_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(begin(data_folder, out))
    return result(out)


@pytest.fixture(scope="module")
def stopped(data_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        run(begin(data_folder, out), 1)
    return out


def test_metrics_have_every_step_and_epoch_once(uninterrupted):
    state, lines = uninterrupted
    assert state["step"] == 12
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 13))
    assert [line["kind"] for line in lines] == (["step"] * 6 + ["epoch"]) * 2
    steps = [line["loss"] for line in lines if line["kind"] == "step"]
    assert lines[6]["loss"] == pytest.approx(sum(steps[:6]) / 6)
    assert {"spread", "rank", "correlation", "dim"} <= lines[6].keys()


@pytest.mark.parametrize("stops", [(1,), (6,), (3, 8, 11), (12,)])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(data_folder, tmp_path, uninterrupted, stops):
    training = begin(data_folder, tmp_path)
    for stop in stops:
        with pytest.raises(Interrupted):  # after the last step too: the evaluation takes long
            run(training, stop)
        assert training.step == training.saved_step == stop
        torch.rand(3)  # whatever else happens in between
        training = begin(data_folder, tmp_path, resume=True)
    run(training)
    assert same(result(tmp_path), uninterrupted)


def test_a_killed_run_repeats_what_was_not_saved(data_folder, tmp_path, uninterrupted):
    reports = begin(data_folder, tmp_path).train()
    for report in reports:
        if isinstance(report, StepReport) and report.step == 10:
            break
    reports.close()  # the checkpoint is of step 6, metrics.jsonl is further
    assert len(read_metrics(tmp_path / METRICS)) > 7
    training = begin(data_folder, tmp_path, resume=True)
    assert training.step == 6
    run(training)
    assert same(result(tmp_path), uninterrupted)


def test_worker_processes_change_nothing(data_folder, tmp_path, uninterrupted):
    run(begin(data_folder, tmp_path, workers=2))
    assert same(result(tmp_path), uninterrupted)


def test_another_seed_is_another_run(data_folder, tmp_path, uninterrupted):
    run(begin(data_folder, tmp_path, seed=1))
    assert not same(result(tmp_path)[0]["recipe"], uninterrupted[0]["recipe"])


def test_evaluating_again_replaces_the_evaluation(data_folder, tmp_path):
    training = run(begin(data_folder, tmp_path, epochs=1))
    reports = [training.evaluate(), begin(data_folder, tmp_path, resume=True, epochs=1).evaluate()]
    assert reports[0] == reports[1]
    assert [line["kind"] for line in read_metrics(tmp_path / METRICS)].count("evaluation") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 8}, "--batch-size 6, not 8"),
        ({"epochs": 3}, "--epochs 2, not 3; the learning rate follows a schedule over all epochs"),
        ({"options": {"temperature": 0.9}}, "--temperature 0.5, not 0.9"),
        ({"seed": 4}, "--seed 0, not 4"),
        ({"augment": "torchvision"}, "--augment pyssl_fast, not torchvision"),
    ],
)
def test_resuming_with_other_settings_is_refused(data_folder, tmp_path, given, message):
    with pytest.raises(Interrupted):
        run(begin(data_folder, tmp_path), 1)
    with pytest.raises(ValueError, match=message):
        begin(data_folder, tmp_path, resume=True, **given)


def test_a_full_disk_leaves_the_last_checkpoint(data_folder, tmp_path, monkeypatch):
    training = begin(data_folder, tmp_path)
    fsync = os.fsync

    def full(handle):
        if training.step > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(training)
    assert training.saved_step == 6
    monkeypatch.undo()
    assert run(begin(data_folder, tmp_path, resume=True)).saved_step == 12


def test_changed_data_is_refused_even_when_as_many_images(tmp_path):
    for name in ("a", "b"):
        write_images(tmp_path / "data" / name, 5)
    given = {"data": f"folder:{tmp_path / 'data'}", "batch_size": 4, "image_size": 16}
    with pytest.raises(Interrupted):
        run(begin(None, tmp_path / "run", **given), 1)
    begin(None, tmp_path / "run", resume=True, **given)
    (tmp_path / "data" / "a" / "0.png").rename(tmp_path / "data" / "a" / "9.png")
    with pytest.raises(ValueError, match="has changed since the run was started"):
        begin(None, tmp_path / "run", resume=True, **given)


def test_the_data_of_a_class_too_small_to_be_judged_is_refused(tmp_path):
    for name in ("a", "b", "c"):
        write_images(tmp_path / name, 2 if name == "a" else 1)
    with pytest.raises(ValueError, match="the test images are of fewer than two classes"):
        settle({"method": "simclr", "data": f"folder:{tmp_path}"})


def spoil(out, change):
    state = load_checkpoint(out / CHECKPOINT)
    change(state)
    save_checkpoint(out / CHECKPOINT, state)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("optimizer"),
        lambda state: state["settings"].update(colour="red"),
        lambda state: state["settings"]["options"].update(colour="red"),
        lambda state: state["recipe"].popitem(),
        lambda state: state["settings"].update(encoder="resnet18"),
    ],
)
def test_a_checkpoint_of_another_version_is_said_to_be_one(stopped, tmp_path, data_folder, change):
    shutil.copytree(stopped, tmp_path / "run")
    spoil(tmp_path / "run", change)
    with pytest.raises(ValueError, match="the checkpoint is of another version") as caught:
        begin(data_folder, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)


def test_runs_of_before_there_was_a_choice_keep_torchvisions_augmentation(stopped, tmp_path, data_folder):
    shutil.copytree(stopped, tmp_path / "run")
    spoil(tmp_path / "run", lambda state: state["settings"].pop("augment"))
    assert begin(data_folder, tmp_path / "run", resume=True).settings.augment == "torchvision"


@pytest.mark.parametrize(
    ("content", "message"), [(b"{}\n" * 3 + b"{" + b" " * 999, "damaged at line 4"), (b"", "is shorter")]
)
def test_damaged_metrics_are_named_before_training(stopped, tmp_path, data_folder, content, message):
    shutil.copytree(stopped, tmp_path / "run")
    (tmp_path / "run" / METRICS).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        begin(data_folder, tmp_path / "run", resume=True)


def test_another_number_of_threads_is_noted(stopped, tmp_path, data_folder):
    shutil.copytree(stopped, tmp_path / "run")
    assert begin(data_folder, tmp_path / "run", resume=True).notes == []
    spoil(tmp_path / "run", lambda state: state.update(threads=99))
    assert begin(data_folder, tmp_path / "run", resume=True).notes[0].startswith("99 threads at the start")


def test_an_earlier_run_is_kept_until_the_first_batch_is_there(stopped, tmp_path, data_folder, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    training = begin(data_folder, out)
    monkeypatch.setattr(training.data.train, "picture", lambda index: {}[index])
    with pytest.raises(KeyError):
        run(training)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert training.saved_step is None


def test_workers_that_end_by_the_signal_that_stops_the_run_are_no_failure(data_folder, tmp_path, uninterrupted):
    training = begin(data_folder, tmp_path)
    picture, calls = training.data.train.picture, iter(range(1000))

    def ended(index):
        if next(calls) == 20:  # while the fourth batch is awaited
            training.stop_requested = True
            raise DataError("a data worker process died")
        return picture(index)

    training.data.train.picture = ended
    with pytest.raises(Interrupted):
        run(training)
    assert training.step == training.saved_step == 3
    assert same(result(run(begin(data_folder, tmp_path, resume=True)).out), uninterrupted)


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint(data_folder, tmp_path):
    training = begin(data_folder, tmp_path)
    with pytest.raises(TrainingError, match=r"not finite at step 6: .* still that of step 0"):
        for report in training.train():
            if report.step == 6:
                training.recipe.projector.layers[0].weight.data[0, 0] = float("inf")
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 0


def test_a_loss_that_is_no_number_stops_the_run(data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(SimCLR, "loss", lambda self, *views: views[0].sum() * float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        run(begin(data_folder, tmp_path))


@pytest.mark.parametrize("precision", ["medium", "bf16", "fp16"])
def test_every_precision_trains(data_folder, tmp_path, precision):
    before = torch.get_float32_matmul_precision()
    reports = list(begin(data_folder, tmp_path, epochs=1, precision=precision).train())
    assert isinstance(reports[-1], EpochReport)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 1}, "--batch-size must be at least 2"),
        ({"batch_size": 41}, "--batch-size 41 is larger than the 40 training images"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"learning_rate": 0.0}, "--learning-rate must be greater than 0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be greater than 0"),
        ({"learning_rate": float("inf")}, "--learning-rate must be .* finite"),
        ({"options": {"embedding_dim": 0}}, "--embedding-dim must be at least 1"),
        ({"image_size": 4}, "--image-size must be at least 16"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"seed": 1 << 63}, "--seed must .* less than 2⁶³"),
        ({"augment": "kornia"}, "--augment must be one of pyssl_fast, torchvision; got 'kornia'"),
        ({"encoder": "resnet17"}, "unknown encoder 'resnet17'"),
        ({"options": {"temperature": 0.0}}, "temperature must be"),
        ({"method": "simclear"}, "unknown method 'simclear'; known: simclr"),
    ],
)
def test_bad_settings_are_named(data_folder, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        begin(data_folder, tmp_path, **given)


def test_settings_are_completed_by_the_recipe(data_folder):
    settings, data = settle({"method": "simclr", "data": f"fashion-mnist:{data_folder}", "epochs": 7})
    assert (settings.epochs, settings.batch_size, settings.image_size) == (7, 40, 16)  # 256 images are not there
    assert settings.learning_rate == SimCLR.budgets["fashion-mnist"].learning_rate
    assert settings.options == {"temperature": 0.5, "embedding_dim": 128}
    assert len(data.test) == 40


class ThreeViews(Recipe):
    """A method unlike SimCLR: three views, a part without gradient, a loss with a weight and a state of its own."""

    title = "three views"
    family = "similarity"
    budgets = {"": Budget()}  # noqa: RUF012

    @dataclasses.dataclass(frozen=True)
    class Options:
        strength: float = option(2.0, "Of the pull.")

    def __init__(self, encoder, features, options):
        super().__init__(encoder, features, options)
        self.weight = torch.nn.Parameter(torch.tensor(options.strength))
        self.register_buffer("seen", torch.tensor(0))

    @staticmethod
    def augmentations(data):
        return [*SimCLR.augmentations(data), SimCLR.augmentations(data)[0]]

    def forward(self, images):
        return self.encoder(images)

    def embed(self, views):
        with torch.no_grad():
            target = self(views[2])
        return self(views[0]), self(views[1]), target

    def loss(self, one, other, target):
        self.seen += 1
        return self.weight * ((one - target).square().mean() + (other - target).square().mean())


def test_a_recipe_with_more_views_a_target_and_a_state(data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("pyssl_fast.recipes.engine.find_recipe", lambda method: ThreeViews)
    training = begin(data_folder, tmp_path, method="three", epochs=1)
    joint = begin(data_folder, tmp_path, method="three", epochs=1).recipe
    with pytest.raises(Interrupted):
        run(training, 1)
    assert load_checkpoint(tmp_path / CHECKPOINT)["recipe"]["seen"] == 1

    # The engine's backward pass in two pieces gives the gradients of one in a whole.
    views = [torch.rand(6, 1, 16, 16) for _ in range(3)]
    joint.loss(*joint.embed(views)).backward()
    parts = begin(data_folder, tmp_path, method="three", epochs=1)
    monkeypatch.setattr(parts, "_input", lambda view: view)
    parts._train_step(parts.recipe.embed, Batch(views, None))
    for ours, theirs in zip(parts.recipe.parameters(), joint.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@given(st.integers(1, 500))
def test_the_schedule_rises_to_its_maximum_and_falls_towards_zero(total):
    factors = [schedule_factor(step, total) for step in range(total)]
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert max(factors) == 1
    assert min(factors) > 0
