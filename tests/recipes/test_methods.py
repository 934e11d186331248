"""What every method promises, and what is particular to each."""

import dataclasses

import pytest
import torch

from pyssl_fast.data import load_data
from pyssl_fast.recipes import RECIPES, find_recipe
from pyssl_fast.recipes.engine import CHECKPOINT, Interrupted, settle
from pyssl_fast.recipes.files import load_checkpoint
from pyssl_fast.recipes.momentum import Teacher, rising
from pyssl_fast.recipes.recipe import Recipe
from tests.data.tiny import write_fashion
from tests.recipes.test_engine import begin, result, run, same

SUPERVISED = {"supcon", "triplet"}
VARIANTS = [
    *((method, {}) for method in RECIPES),
    ("moco", {"version": 3}),
    ("moco", {"symmetric": True}),
    ("triplet", {"mining": "hard", "distance": "cosine"}),
    *((method, {option: False}) for method in ("byol", "simsiam") for option in ("predictor", "stop_gradient")),
    ("simsiam", {"output_norm": False}),
]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return write_fashion(tmp_path_factory.mktemp("data"), count=40, size=16)


def recipe_of(data_folder, out, method, **options):
    return begin(data_folder, out, method=method, options=options).recipe


def views_and_labels(recipe):
    torch.manual_seed(1)
    return [torch.rand(6, 1, 16, 16) for _ in range(2)], [torch.tensor([0, 0, 1, 1, 2, 2])] * recipe.supervised


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(data_folder, tmp_path, method, options):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(begin(data_folder, whole, method=method, options=options))
    with pytest.raises(Interrupted):
        run(begin(data_folder, stopped, method=method, options=options), 3)
    run(begin(data_folder, stopped, method=method, resume=True))
    assert same(result(stopped), result(whole))


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_gradients_reach_all_that_is_trained_and_nothing_else(data_folder, tmp_path, method, options):
    recipe = recipe_of(data_folder, tmp_path, method, **options)
    views, labels = views_and_labels(recipe)
    recipe.loss(*recipe.embed(views), *labels).backward()
    for name, parameter in recipe.named_parameters():
        assert parameter.requires_grad == (not name.startswith("teacher.")), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert any(parameter.grad.abs().max() > 0 for parameter in recipe.encoder.parameters())


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_steps_on_one_batch_lower_its_loss(data_folder, tmp_path, method, options):
    """With the queue, the teacher, TiCo's covariance and the random directions held still."""
    recipe = recipe_of(data_folder, tmp_path, method, **options)
    views, labels = views_and_labels(recipe)
    optimizer = torch.optim.AdamW([p for p in recipe.parameters() if p.requires_grad], 2e-3)
    still = ("queue.", "criterion.")
    state = {name: value.clone() for name, value in recipe.state_dict().items() if name.startswith(still)}
    losses = []
    for _ in range(20):
        recipe.load_state_dict(state, strict=False)
        torch.manual_seed(2)
        optimizer.zero_grad()
        loss = recipe.loss(*recipe.embed(views), *labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] if losses[0] > 0 else losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", [method for method in RECIPES if method != "simclr"])
def test_every_method_trains_in_half_precision(data_folder, tmp_path, method, precision):
    training = run(begin(data_folder, tmp_path, method=method, epochs=1, precision=precision))
    assert training.step == 6


@pytest.mark.parametrize("method", list(RECIPES))
def test_a_recipe_states_what_the_engine_asks_for(method):
    recipe = find_recipe(method)
    assert issubclass(recipe, Recipe)
    assert recipe.title
    assert "" in recipe.budgets
    assert recipe.supervised == (method in SUPERVISED)
    assert all(field.metadata["help"] for field in dataclasses.fields(recipe.Options))


def test_labels_reach_the_loss_of_supervised_methods_alone(data_folder, tmp_path, monkeypatch):
    for method in RECIPES:
        training = begin(data_folder, tmp_path / method, method=method, epochs=1)
        seen, loss = [], training.recipe.loss

        def spy(*parts, seen=seen, loss=loss):
            seen.append(parts)
            return loss(*parts)

        monkeypatch.setattr(training.recipe, "loss", spy)
        run(training)
        integers = [[part.tolist() for part in parts if part.dtype == torch.int64] for parts in seen]
        assert all(bool(part) == (method in SUPERVISED) for part in integers)


# The teacher


def test_a_teacher_starts_equal_and_follows_parameters_alone():
    torch.manual_seed(0)
    encoder, head = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)), torch.nn.Linear(4, 2)
    teacher = Teacher(encoder, head)
    x = torch.randn(8, 3)
    assert torch.equal(teacher(x), head(encoder(x)))
    before = [parameter.clone() for parameter in teacher.parameters()]
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *head.parameters()):
            parameter += 1
        encoder[1].running_mean += 5
    statistics = teacher.networks[0][1].running_mean.clone()
    teacher.follow(encoder, head, momentum=0.75)
    for own, old in zip(teacher.parameters(), before, strict=True):
        torch.testing.assert_close(own, old + 0.25)
    assert torch.equal(teacher.networks[0][1].running_mean, statistics)
    assert not teacher(x.requires_grad_()).requires_grad


def test_a_rising_momentum_ends_at_one():
    values = [rising(0.9, step / 10) for step in range(11)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0.9)
    assert values[5] == pytest.approx(0.95)
    assert values[10] == 1


@pytest.mark.parametrize(
    ("method", "options", "momenta"),
    [("moco", {}, [0.5, 0.5]), ("moco", {"version": 3}, [0.75, 1.0]), ("byol", {}, [0.75, 1.0])],
)
def test_a_teacher_follows_after_every_step(data_folder, tmp_path, monkeypatch, method, options, momenta):
    training = begin(data_folder, tmp_path, method=method, options={"momentum": 0.5, **options})
    follow, seen = Teacher.follow, []

    def spy(self, *networks, momentum):
        seen.append(momentum)
        follow(self, *networks, momentum=momentum)

    monkeypatch.setattr(Teacher, "follow", spy)
    run(training)
    assert len(seen) == training.total_steps
    assert [seen[len(seen) // 2 - 1], seen[-1]] == pytest.approx(momenta)


# The queue


@pytest.mark.parametrize(("method", "keys"), [("moco", 1), ("nnclr", 1), ("meanshift", 1)])
def test_the_queue_fills_with_keys_and_is_saved(data_folder, tmp_path, method, keys):
    training = begin(data_folder, tmp_path, method=method, options={"queue_size": 24})
    before = training.recipe.queue.keys.clone()
    with pytest.raises(Interrupted):
        run(training, 1)
    changed = (training.recipe.queue.keys != before).any(1)
    assert changed.sum() == 6 * keys
    saved = load_checkpoint(tmp_path / CHECKPOINT)["recipe"]
    assert torch.equal(saved["queue.keys"], training.recipe.queue.keys)
    torch.testing.assert_close(saved["queue.keys"][changed].norm(dim=1), torch.ones(6 * keys))


def test_a_symmetric_moco_keeps_the_keys_of_both_views(data_folder, tmp_path):
    recipe = recipe_of(data_folder, tmp_path, "moco", symmetric=True, queue_size=20)
    before = recipe.queue.keys.clone()
    recipe.loss(*recipe.embed(views_and_labels(recipe)[0]))
    assert (recipe.queue.keys != before).any(1).sum() == 12


def test_the_queue_fits_the_data(data_folder):
    for method in ("moco", "nnclr", "meanshift"):
        settings, _ = settle({"method": method, "data": f"fashion-mnist:{data_folder}"})
        assert settings.options["queue_size"] == 20  # of 40 images
        recipe = find_recipe(method)
        assert recipe.complete(settings.options | {"queue_size": 0}, 60_000, 256)["queue_size"] == 4096
        assert recipe.complete(settings.options | {"queue_size": 7}, 60_000, 256)["queue_size"] == 7
    settings, _ = settle({"method": "moco", "data": f"fashion-mnist:{data_folder}", "options": {"version": 3}})
    assert settings.options["queue_size"] == 0


# What they compare


def plain_cross_entropy(query, key, negatives, temperature):
    """InfoNCE in double: the key among itself and the negatives, [N] rows."""
    query, key, negatives = (torch.nn.functional.normalize(part.double(), dim=1) for part in (query, key, negatives))
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ negatives.T], dim=1) / temperature
    return (logits.logsumexp(1) - logits[:, 0]).mean()


def test_moco_compares_a_view_with_the_teachers_key_and_the_queue(data_folder, tmp_path):
    recipe = recipe_of(data_folder, tmp_path, "moco", temperature=0.3, queue_size=20).eval()
    views, _ = views_and_labels(recipe)
    queue, key = recipe.queue.keys.clone(), recipe.teacher(views[1])
    expected = plain_cross_entropy(recipe(views[0]), key, queue, 0.3)
    assert recipe.loss(*recipe.embed(views)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_moco_3_compares_each_view_with_the_others_keys_in_the_batch(data_folder, tmp_path):
    recipe = recipe_of(data_folder, tmp_path, "moco", version=3, temperature=0.3).eval()
    views, _ = views_and_labels(recipe)
    expected = 0.0
    for mine, other in (views, views[::-1]):
        query, keys = recipe.predictor(recipe(mine)), recipe.teacher(other)
        for row in range(6):
            others = keys[[index for index in range(6) if index != row]]
            expected += 2 * 0.3 * plain_cross_entropy(query[row : row + 1], keys[row : row + 1], others, 0.3) / 6
    assert recipe.loss(*recipe.embed(views)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_meanshift_moves_towards_its_target_first(data_folder, tmp_path):
    """With one neighbour, which is the target itself, what is left is BYOL: 2 − 2 cos."""
    recipe = recipe_of(data_folder, tmp_path, "meanshift", neighbours=1, queue_size=20).eval()
    views, _ = views_and_labels(recipe)
    query, target = recipe.predictor(recipe(views[0])), recipe.teacher(views[1])
    expected = (2 - 2 * torch.nn.functional.cosine_similarity(query, target)).mean()
    assert recipe.loss(*recipe.embed(views)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_nnclr_compares_a_prediction_with_the_neighbour_of_the_other_view(data_folder, tmp_path):
    recipe = recipe_of(data_folder, tmp_path, "nnclr", temperature=0.3, queue_size=20).eval()
    views, _ = views_and_labels(recipe)
    queue, expected = recipe.queue.keys.clone(), 0.0
    for mine, other in (views, views[::-1]):
        embeddings = torch.nn.functional.normalize(recipe(mine), dim=1)
        neighbours, predictions = queue[(embeddings @ queue.T).argmax(1)], recipe.predictor(recipe(other))
        for row in range(6):
            others = predictions[[index for index in range(6) if index != row]]
            expected += plain_cross_entropy(neighbours[row : row + 1], predictions[row : row + 1], others, 0.3) / 12
    assert recipe.loss(*recipe.embed(views)).item() == pytest.approx(expected.item(), rel=1e-5)


def cosine_of_predictions(recipe, views, embed):
    """Mean cos over both views between the prediction from one and embed(the other), in evaluation mode."""
    pairs = [(recipe.predictor(recipe(mine)), embed(other)) for mine, other in (views, views[::-1])]
    return torch.stack([torch.nn.functional.cosine_similarity(*pair) for pair in pairs]).mean()


@pytest.mark.parametrize("options", [{}, {"predictor": False}, {"stop_gradient": False}])
def test_byol_predicts_the_teachers_embedding_of_the_other_view(data_folder, tmp_path, options):
    recipe = recipe_of(data_folder, tmp_path, "byol", **options).eval()
    views, _ = views_and_labels(recipe)
    if options.get("stop_gradient", True):
        with torch.no_grad():
            for parameter in recipe.teacher.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        embed = recipe.teacher
    else:
        assert recipe.teacher is None
        embed = recipe
    expected = 2 * (2 - 2 * cosine_of_predictions(recipe, views, embed))
    parts = recipe.embed(views)
    assert recipe.loss(*parts).item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts[1].requires_grad == (recipe.teacher is None)


@pytest.mark.parametrize("options", [{}, {"predictor": False}, {"stop_gradient": False}])
def test_simsiam_predicts_its_own_embedding_of_the_other_view(data_folder, tmp_path, options):
    recipe = recipe_of(data_folder, tmp_path, "simsiam", **options).eval()
    views, _ = views_and_labels(recipe)
    expected = -cosine_of_predictions(recipe, views, recipe)
    parts = recipe.embed(views)
    assert recipe.loss(*parts).item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts[1].requires_grad == (not recipe.stop_gradient)
    if "predictor" in options:
        assert parts[0] is not parts[1]
        torch.testing.assert_close(parts[0].chunk(2), parts[1].chunk(2)[::-1], check_device=False)


def test_tico_compares_a_view_with_the_teachers_other_one(data_folder, tmp_path):
    recipe = recipe_of(data_folder, tmp_path, "tico", beta=0.8, rho=3.0, momentum=0.5).eval()
    views, _ = views_and_labels(recipe)
    with torch.no_grad():
        for parameter in recipe.teacher.parameters():
            parameter *= 0.9
    covariance = torch.zeros(())
    for _ in range(2):
        mine, other = (
            torch.nn.functional.normalize(part, dim=1) for part in (recipe(views[0]), recipe.teacher(views[1]))
        )
        covariance = 0.8 * covariance + 0.2 * mine.T @ mine / 6
        expected = 1 - (mine * other).sum(1).mean() + 3 * ((mine @ covariance) * mine).sum(1).mean()
        assert recipe.loss(*recipe.embed(views)).item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(recipe.state_dict()["criterion.C"], covariance)


def test_vicreg_weighs_its_three_terms(data_folder, tmp_path):
    torch.manual_seed(0)
    views = torch.randn(2, 6, 512)
    centred = views - views.mean(1, keepdim=True)
    covariance = centred.mT @ centred / 5
    variances = covariance.diagonal(dim1=1, dim2=2)
    terms = {
        "invariance": (views[0] - views[1]).square().mean(),
        "variance": (1 - (variances + 1e-4).sqrt()).relu().mean(),
        "covariance": (covariance.square().sum() - variances.square().sum()) / 512,
    }
    for name, expected in terms.items():
        weights = dict.fromkeys(terms, 0.0) | {name: 2.0}
        recipe = recipe_of(data_folder, tmp_path / name, "vicreg", **weights)
        assert recipe.loss(*views).item() == pytest.approx(2 * expected.item(), rel=1e-5)


def test_barlow_twins_weighs_the_redundancy(data_folder, tmp_path):
    torch.manual_seed(0)
    views = torch.randn(2, 6, 512)
    columns = (views - views.mean(1, keepdim=True)) / (views.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    correlation = columns[0].T @ columns[1] / 6
    diagonal = correlation.diagonal()
    redundancy = correlation.square().sum() - diagonal.square().sum()
    for weight in (0.0, 0.01):
        recipe = recipe_of(data_folder, tmp_path / f"{weight}", "barlow-twins", redundancy=weight)
        expected = (1 - diagonal).square().sum() + weight * redundancy
        assert recipe.loss(*views).item() == pytest.approx(expected.item(), rel=1e-5)


def test_w_mse_compares_whitened_views(data_folder, tmp_path):
    recipe = recipe_of(data_folder, tmp_path, "w-mse", repeats=2)
    torch.manual_seed(0)
    views = torch.randn(2, 6, 3)
    mixed = views @ torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.2, 1.0], [0.0, 0.0, 5.0]]) + 7
    centred = views - views.mean(1, keepdim=True)
    inverse = torch.linalg.inv(torch.linalg.cholesky(centred.mT @ centred / 5))
    first, second = centred @ inverse.mT
    cosine = torch.nn.functional.cosine_similarity(first, second).mean()
    expected = (2 - 2 * cosine).item()
    assert recipe.loss(*views).item() == pytest.approx(expected, rel=1e-4)
    assert recipe.loss(*mixed).item() == pytest.approx(expected, rel=1e-4)  # whitening takes a triangular mixing away


def test_lejepa_treats_both_views_alike(data_folder, tmp_path):
    torch.manual_seed(0)
    views = torch.randn(2, 6, 64)
    recipe = recipe_of(data_folder, tmp_path, "lejepa", gaussianity=0.3, directions=5)
    losses = []
    for order in (views, views.flip(0)):
        torch.manual_seed(1)
        losses.append(recipe.loss(*order).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    alone = recipe_of(data_folder, tmp_path / "alone", "lejepa", gaussianity=0.0).loss(*views)
    assert alone.item() == pytest.approx((views[0] - views[1]).square().mean().item() / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "batch_size", "size", "dim"),
    [
        ({}, 256, 128, 64),
        ({}, 250, 125, 62),
        ({}, 251, 251, 64),
        ({}, 6, 6, 3),
        ({"whitening_size": 256}, 512, 256, 64),
        ({"whitening_size": 256, "embedding_dim": 128}, 512, 256, 128),
        ({"embedding_dim": 8}, 48, 48, 8),
    ],
)
def test_whitening_fits_the_batch(options, batch_size, size, dim):
    recipe = find_recipe("w-mse")
    defaults = {field.name: field.default for field in dataclasses.fields(recipe.Options)}
    settled = recipe.complete(defaults | options, 1000, batch_size)
    assert (settled["whitening_size"], settled["embedding_dim"]) == (size, dim)


def test_supervised_losses_fall_when_classes_part(data_folder, tmp_path):
    for method in SUPERVISED:
        recipe = recipe_of(data_folder, tmp_path / method, method)
        labels = torch.arange(3).repeat_interleave(2)
        torch.manual_seed(0)
        mixed = torch.randn(6, 128)
        apart = mixed + 50 * torch.eye(128)[labels]
        assert recipe.loss(apart, apart, labels) < recipe.loss(mixed, mixed, labels)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("moco", {"version": 4}, "--version must be 2 or 3, got 4"),
        ("moco", {"version": 3, "queue_size": 64}, "--queue-size belongs to version 2"),
        ("moco", {"momentum": 1.5}, "--momentum must be 0 to 1, got 1.5"),
        ("moco", {"temperature": 0.0}, "temperature must be"),
        ("meanshift", {"momentum": float("nan")}, "--momentum must be 0 to 1"),
        ("meanshift", {"neighbours": 21}, "--neighbours must be 1 to --queue-size 20, got 21"),
        ("nnclr", {"queue_size": -1}, "--queue-size must not be negative"),
        ("nnclr", {"temperature": 0.0}, "temperature must be"),
        ("spectral", {"mu": 0.0}, "mu must be"),
        ("spectral", {"embedding_dim": 0}, "--embedding-dim must be at least 1"),
        ("supcon", {"temperature": 0.0}, "temperature must be"),
        ("triplet", {"mining": "easy"}, "mining must be one of all, hard, semi-hard; got 'easy'"),
        ("triplet", {"distance": "manhattan"}, "distance must be one of euclidean, cosine; got 'manhattan'"),
        ("triplet", {"margin": float("inf")}, "margin must be"),
        ("vicreg", {"covariance": -1.0}, "nu_param must be"),
        ("vicreg", {"hidden_dim": 0}, "--hidden-dim must be at least 1, got 0"),
        ("barlow-twins", {"redundancy": -1.0}, "lambda_param must be"),
        ("w-mse", {"whitening_size": 4}, "--whitening-size must divide the batch size 6, got 4"),
        ("w-mse", {"whitening_size": -6}, "--whitening-size must divide the batch size 6, got -6"),
        ("w-mse", {"embedding_dim": 4}, "--embedding-dim must be at most half of --whitening-size 6, got 4"),
        ("w-mse", {"embedding_dim": -1}, "--embedding-dim must be at least 1, got -1"),
        ("w-mse", {"repeats": 0}, "w_iter must be"),
        ("tico", {"beta": 1.5}, "beta must be"),
        ("tico", {"momentum": -0.1}, "--momentum must be 0 to 1"),
        ("byol", {"momentum": 1.1}, "--momentum must be 0 to 1, got 1.1"),
        ("byol", {"hidden_dim": 0}, "--hidden-dim must be at least 1, got 0"),
        ("simsiam", {"embedding_dim": 0}, "--embedding-dim must be at least 1, got 0"),
        ("lejepa", {"gaussianity": 1.5}, "lambda_param must be"),
    ],
)
def test_bad_options_are_named_before_training(data_folder, tmp_path, method, options, message):
    with pytest.raises(ValueError, match=message):
        begin(data_folder, tmp_path, method=method, options=options)


@pytest.mark.parametrize("method", sorted(SUPERVISED))
def test_learning_from_labels_that_are_not_there_is_refused(tmp_path, method):
    from tests.data.tiny import write_images

    data = f"folder:{write_images(tmp_path / 'images', 6)}"
    assert load_data(data).train.labels is None
    with pytest.raises(ValueError, match="learns from the labels of the training images, and folder has none"):
        settle({"method": method, "data": data})
