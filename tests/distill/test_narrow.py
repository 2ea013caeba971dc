"""A narrower item table: the projection, the term that keeps its scores, new items by texts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slmc.artefact import Artefact
from slmc.distill import narrow
from slmc.distill.config import DistillConfig
from slmc.distill.distill import distill
from slmc.errors import UsageError
from slmc.model.loading import load_model, load_recommender
from slmc.model.quantized_table import QuantizedTable
from slmc.model.recommender import SequentialRecommender

V, D = 30, 16
TOLERANCE = 1e-5
FAST = {"layers": 2, "blocks": 2, "epochs": 1, "rows": 8, "warmup": 2, "dtype": "fp32"}


def table(width: int = D, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    items = torch.randn(V + 1, width, generator=generator) * torch.linspace(2, 0.2, width) + 0.5
    items[0] = 0
    return items


def counts() -> np.ndarray:
    numbers = np.random.default_rng(1).integers(0, 40, V + 1)
    numbers[0] = 0
    return numbers


def plain_item_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> float:
    """Every pair of items, in float64."""
    w = [float(x) for x in weights.double()]
    tables = []
    for vectors in (student.double(), teacher.double()):
        mean = sum(x * v for x, v in zip(w, vectors, strict=True))
        tables.append(vectors - mean)
    above = below = 0.0
    for i in range(len(w)):
        for j in range(len(w)):
            s, t = (float(vectors[i] @ vectors[j]) for vectors in tables)
            above += w[i] * w[j] * (s - t) ** 2
            below += w[i] * w[j] * t**2
    return above / below


def test_item_loss_is_the_plain_loop_over_all_pairs() -> None:
    weights = narrow.frequencies(counts())
    student, teacher = table(5, seed=3)[1:], table()[1:]
    found = narrow.item_loss(student, teacher, weights).item()
    assert found == pytest.approx(plain_item_loss(student, teacher, weights), rel=1e-5)


def test_item_loss_by_hand() -> None:
    """Vectors -1 and 1 against -2 and 2: scores of 1 in the place of 4."""
    student, teacher = torch.tensor([[-1.0], [1.0]]), torch.tensor([[-2.0], [2.0]])
    half = torch.tensor([0.5, 0.5])
    assert narrow.item_loss(student, teacher, half).item() == pytest.approx(9 / 16)
    assert narrow.item_loss(torch.zeros(2, 1), teacher, half).item() == pytest.approx(1)


@given(angle=st.floats(0, 6.28), shift=st.floats(-5, 5))
def test_item_loss_ignores_rotations_and_shifts(angle: float, shift: float) -> None:
    weights, teacher = narrow.frequencies(counts()), table(2)[1:]
    c, s = np.cos(angle), np.sin(angle)
    turned = teacher @ torch.tensor([[c, -s], [s, c]], dtype=torch.float32) + shift
    assert abs(narrow.item_loss(turned, teacher, weights).item()) < TOLERANCE


def test_no_gradient_of_item_loss_reaches_the_teacher() -> None:
    student, teacher = table(5, seed=3)[1:].requires_grad_(), table()[1:].requires_grad_()
    narrow.item_loss(student, teacher, narrow.frequencies(counts())).backward()
    assert student.grad is not None and student.grad.any() and teacher.grad is None


def test_the_sample_of_a_large_catalogue_estimates_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def many(vectors: Tensor) -> Tensor:
        return torch.cat([vectors[:1], vectors[1:].repeat(40, 1)])

    class Model:
        item_embeddings = torch.nn.Embedding.from_pretrained(many(table(5, seed=3)))

    term = narrow.ItemScores(many(table()), np.r_[0, np.tile(counts()[1:], 40)])
    whole = term(Model()).item()
    monkeypatch.setattr(narrow, "COMPARED", 600)
    torch.manual_seed(0)
    drawn = torch.cat([term._drawn() for _ in range(200)])
    shares = torch.bincount((drawn - 1) % V, minlength=V) / len(drawn)
    assert (shares - narrow.frequencies(counts())).abs().max() < 0.005
    sampled = [term(Model()).item() for _ in range(50)]
    assert np.mean(sampled) == pytest.approx(whole, rel=0.02) and len(set(sampled)) > 1


def test_pca_equals_a_plain_svd_of_the_weighted_table() -> None:
    items, weights = table()[1:].double(), narrow.frequencies(counts())
    pca = narrow.Pca.fit(items.float(), weights, 6)
    mean = (weights[:, None] * items).sum(dim=0)
    _, sizes, right = torch.linalg.svd(weights.sqrt()[:, None] * (items - mean))
    expected = (items - mean) @ right[:6].T
    signs = (pca(items.float()).double() * expected).sum(dim=0).sign()
    assert torch.allclose(pca(items.float()).double(), expected * signs, atol=TOLERANCE)
    assert pca.explained == pytest.approx((sizes[:6].square().sum() / sizes.square().sum()).item())
    least = (sizes[6:] ** 4).sum() / (sizes**4).sum()
    found = narrow.item_loss(pca(items.float()), items.float(), weights)
    assert found.item() == pytest.approx(least.item(), rel=1e-3)


def test_no_other_table_of_that_width_is_nearer() -> None:
    items, weights = table()[1:], narrow.frequencies(counts())
    pca = narrow.Pca.fit(items, weights, 4)
    best = narrow.item_loss(pca(items), items, weights)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = pca(items) + 0.1 * torch.randn(V, 4, generator=generator)
        assert narrow.item_loss(other, items, weights) > best


def scores(model: SequentialRecommender) -> Tensor:
    ids = torch.tensor([[0, 0, 3], [1, 2, 3], [5, 1, 30]])
    with torch.no_grad():
        return model(ids)[:, 1:]


def test_a_table_of_low_rank_is_kept(teacher: Artefact) -> None:
    """Vectors in 5 dimensions around a mean: 5 dimensions rank as 16 did."""
    model = load_recommender(teacher)
    inside = table(5)[1:] @ torch.randn(5, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        model.get_parameter("item_embeddings.weight")[1:] = inside + 0.3
    before = scores(model)
    narrow.narrow(model, 5, counts())
    after = scores(model)
    assert model.config.item_dim == 5 and model.item_vectors().shape == (V + 1, 5)
    assert not model.item_vectors()[0].any() and model.item_vectors().requires_grad
    change = after - before
    assert (change - change.mean(dim=1, keepdim=True)).abs().max() < 1e-4 * before.abs().max()


def test_a_table_of_the_same_width_is_only_trained(teacher: Artefact) -> None:
    model = load_recommender(teacher)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    narrow.narrow(model, D, counts())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.item_vectors().requires_grad


@pytest.mark.parametrize("width", [5, 16])
def test_a_quantized_table_becomes_one_of_floats(width: int, teacher: Artefact) -> None:
    model = load_recommender(teacher)
    model.config.item_bits = 8
    coded = QuantizedTable(V + 1, D, 8)
    coded.codes = torch.randint(-127, 128, (V + 1, D), dtype=torch.int8)
    coded.scale = torch.full((V + 1, 1), 0.01)
    model.item_embeddings = coded
    before = model.item_vectors().clone()
    narrow.narrow(model, width, counts())
    assert model.config.item_bits is None and model.item_vectors().requires_grad
    assert model.item_vectors().shape == (V + 1, width)
    assert width < D or torch.equal(model.item_vectors(), before)


@pytest.fixture
def inputs(dataset: Artefact, teacher: Artefact) -> dict[str, Artefact]:
    return {"data": dataset, "teacher": teacher}


def settings(**other: object) -> DistillConfig:
    losses = {"logits": 1.0, "items": 1.0, "cosine": 1.0}
    return DistillConfig.model_validate(FAST | {"losses": losses, "item_dim": 6} | other)


@pytest.mark.parametrize("init", ["backbone", "teacher"])
def test_a_student_with_a_narrower_table(
    init: str, inputs: dict[str, Artefact], tmp_path: Path
) -> None:
    student = distill(settings(init=init), inputs, tmp_path / "s")
    config = json.loads(student.file("config.json").read_text())
    assert config["item_dim"] == 6
    model = load_recommender(student)
    assert model.item_vectors().shape == (V + 1, 6)
    assert model.input_proj.weight.shape[1] == model.output_proj.weight.shape[0] == 6
    (epoch,) = json.loads(student.file("metrics.json").read_text())["epochs"][:1]
    assert 0 < epoch["items"] < 1
    width = 4 * (V + 1) * (16 - 6) + 4 * 32 * 2 * (16 - 6)
    wide = distill(settings(item_dim=None, losses={"logits": 1.0}), inputs, tmp_path / "w")
    fewer = wide.manifest.metrics["parameters"] - student.manifest.metrics["parameters"]
    assert 4 * fewer == width


def test_it_is_trained_and_near_the_teacher_only_with_the_term(
    inputs: dict[str, Artefact], tmp_path: Path
) -> None:
    numbers = np.ones(V + 1, dtype=np.int64)
    far = {}
    for name, losses in (("with", {"items": 50.0}), ("without", {})):
        made = distill(
            settings(losses=losses, epochs=4, projection_lr=0.02), inputs, tmp_path / name
        )
        term = narrow.ItemScores(load_model(inputs["teacher"]).item_vectors(), numbers)
        far[name] = term(load_model(made)).item()
    assert far["with"] < 0.7 * far["without"]


def test_a_narrow_student_can_be_a_student_again(
    inputs: dict[str, Artefact], tmp_path: Path
) -> None:
    student = distill(settings(), inputs, tmp_path / "s")
    again = inputs | {"student": student}
    frozen = distill(settings(item_dim=None, losses={"logits": 1.0}), again, tmp_path / "frozen")
    before, after = load_model(student).item_vectors(), load_model(frozen).item_vectors()
    assert torch.equal(before, after)
    narrower = distill(settings(item_dim=3), again, tmp_path / "narrower")
    assert load_model(narrower).item_vectors().shape == (V + 1, 3)


def test_a_wider_table_is_refused(inputs: dict[str, Artefact], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        distill(settings(item_dim=17), inputs, tmp_path / "s")
    assert caught.value.what == (
        "item_dim: 17 is wider than the item table, which has 16 dimensions."
    )
    assert not (tmp_path / "s").exists()


def test_the_term_of_a_frozen_table_is_refused(inputs: dict[str, Artefact], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        distill(settings(item_dim=None), inputs, tmp_path / "s")
    assert caught.value.what == (
        "losses.items: the student's item table is frozen, as the teacher's was."
    )
