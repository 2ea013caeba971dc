import pytest
import torch

from slmc.errors import UsageError
from slmc.model.text_items import STD, Kind, TextItems, Whitening

V, D, WIDTH = 40, 24, 8


def cone() -> torch.Tensor:
    """Vectors that all point about the same way, as raw text vectors do."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(V, D, generator=generator) * torch.linspace(2, 0.1, D)
    return spread + 30


def items(
    kind: Kind = "hybrid",
    textless: tuple[int, ...] = (),
    untrained: tuple[int, ...] = (),
    id_dropout: float = 0.0,
) -> TextItems:
    table = torch.zeros(V + 1, WIDTH)
    table[1:] = Whitening.fit(cone(), WIDTH)(cone())
    table[list(textless)] = 0
    trained = torch.ones(V + 1, dtype=torch.bool)
    trained[[0, *untrained]] = False
    return TextItems(table, kind, trained, id_dropout)


def test_whitened_vectors_are_uncorrelated_with_variance_one() -> None:
    white = Whitening.fit(cone(), WIDTH)(cone())
    assert torch.allclose(white.mean(dim=0), torch.zeros(WIDTH), atol=1e-5)
    assert torch.allclose(white.T @ white / V, torch.eye(WIDTH), atol=1e-4)


def test_whitening_keeps_the_largest_directions() -> None:
    """Against the plain way: eigenvectors of the covariance matrix, in float64."""
    vectors = cone().double()
    centred = vectors - vectors.mean(dim=0)
    sizes, directions = torch.linalg.eigh(centred.T @ centred / V)
    largest = directions[:, -WIDTH:].flip(1)
    expected = centred @ largest / sizes[-WIDTH:].flip(0).sqrt()
    white = Whitening.fit(cone(), WIDTH)(cone()).double()
    signs = (white * expected).sum(dim=0).sign()
    assert torch.allclose(white, expected * signs, atol=1e-4)


def test_texts_that_differ_in_too_few_directions() -> None:
    flat = torch.outer(torch.arange(V).float(), torch.ones(D))
    with pytest.raises(UsageError) as caught:
        Whitening.fit(flat, WIDTH, "encoder e")
    assert caught.value.what == (
        "the texts of 40 items differ in 1 directions only, of encoder e's 24; the item table is 8 "
        "wide."
    )


def test_it_begins_as_the_text_vectors() -> None:
    table = items()
    assert torch.allclose(table.weight, STD * table.vectors)
    assert torch.allclose(table.weight[1:].std(), torch.tensor(STD), rtol=0.05)
    assert not table.weight[0].any()


def test_a_lookup_gives_rows_of_the_table() -> None:
    table = items().eval()
    rows = torch.tensor([[0, 3], [40, 3]])
    assert torch.equal(table(rows), table.weight[rows])


def test_the_text_form_has_no_learned_vectors() -> None:
    assert items("text").ids is None


def test_items_without_a_text_learn_a_vector_and_only_they_do() -> None:
    table = items("text", textless=(2, 5))
    assert table.ids is not None
    table.weight.square().sum().backward()
    gradient = table.ids.grad
    assert gradient is not None
    assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == [2, 5]
    assert table.weight[2].any() and not torch.equal(table.weight[2], table.weight[5])


def test_learned_vectors_are_left_out_at_random_in_training_alone() -> None:
    table = items(id_dropout=0.5)
    assert table.ids is not None
    with torch.no_grad():
        table.ids[1:] = 1.0
    torch.manual_seed(0)
    left_out = (table.weight - STD * table.vectors)[1:].abs().sum(dim=1) < 1e-6
    assert 0.2 < left_out.float().mean() < 0.8
    table.eval()
    assert torch.allclose(table.weight[1:], STD * table.vectors[1:] + 1)


def test_a_new_item_has_its_text_and_is_not_pushed_away() -> None:
    table = items(untrained=(3,))
    assert table.ids is not None
    with torch.no_grad():
        table.ids.fill_(1.0)
    assert torch.allclose(table.weight[3], STD * table.vectors[3])
    table.weight[1:].sum().backward()
    gradient = table.ids.grad
    assert gradient is not None and not gradient[3].any() and gradient[4].all()
    table.zero_grad()
    (table.weight * torch.eye(V + 1)[3][:, None]).sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in table.parameters())


def test_folded_is_a_plain_table_of_the_same_vectors() -> None:
    table = items().eval()
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.normal_()
    folded = table.folded()
    assert torch.equal(folded.weight, table.weight) and folded.weight.requires_grad
    assert folded.padding_idx == 0 and not folded.weight[0].any()
