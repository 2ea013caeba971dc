"""The recommender on several decoders: packed, padded and plain attention agree."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig

from slmc.artefact import Artefact
from slmc.model import packing, random_models
from slmc.model.recommender import RecommenderConfig, SequentialRecommender
from slmc.model.saving import save_model
from slmc.model.silence import silence_transformers

TOLERANCE = 1e-5
"""Float32 through two layers: a few units in the last place of numbers near 1."""
SIZES = {"hidden": 32, "intermediate": 64, "head_dim": 8}
DECODERS = [
    ("llama", {}),
    ("llama", {"kv_heads": 4}),
    ("mistral", {"sliding_window": 3}),
    ("qwen3", {}),
    ("gemma2", {"query_pre_attn_scalar": 8, "sliding_window": 4}),
    ("gemma3_text", {"query_pre_attn_scalar": 8}),
]


def recommender(
    kind: str = "llama", prompt: tuple[int, int] = (0, 0), **sizes: int
) -> SequentialRecommender:
    torch.manual_seed(0)
    shape = {"num_items": 20, "item_dim": 8, "prefix_length": prompt[0], "suffix_length": prompt[1]}
    model = random_models.recommender(kind, SIZES | sizes, **shape)
    with torch.no_grad():
        model.item_embeddings.weight[1:].normal_()
        model.prompt.normal_()
    return model


def histories(rows: int = 6, length: int = 11) -> Tensor:
    ids = torch.randint(1, 21, (rows, length), generator=torch.Generator().manual_seed(1))
    for row in range(rows):
        ids[row, : 2 * row] = 0
    return ids


@pytest.mark.parametrize(("kind", "sizes"), DECODERS)
@pytest.mark.parametrize("prompt", [(0, 0), (3, 2)])
@torch.no_grad()
def test_packed_and_padded_equal_single_histories_with_plain_attention(
    kind: str, sizes: dict[str, int], prompt: tuple[int, int]
) -> None:
    model, ids = recommender(kind, prompt, **sizes), histories()
    packed, padded = model.user_vectors(ids), model.padded_user_vectors(ids)
    model.backbone.set_attn_implementation("eager")
    before, after = torch.split(-1 - torch.arange(sum(prompt)), list(prompt))
    for row, items in enumerate(ids):
        tokens = torch.cat([before, items[items > 0], after])
        states = model.backbone(inputs_embeds=model.embed(tokens)[None]).last_hidden_state
        plain = model.head(states[0, -1])
        assert (packed[row] - plain).abs().max() < TOLERANCE
        assert (padded[row] - plain).abs().max() < TOLERANCE


@pytest.mark.parametrize(("kind", "sizes"), DECODERS)
@pytest.mark.parametrize("prompt", [(3, 0), (5, 2)])
@torch.no_grad()
def test_known_keys_and_values_replace_the_prompt(
    kind: str, sizes: dict[str, int], prompt: tuple[int, int]
) -> None:
    model, ids = recommender(kind, prompt, **sizes), histories()
    expected = model.user_vectors(ids)
    model.serving = True
    assert (model.user_vectors(ids) - expected).abs().max() < TOLERANCE
    model.prefix = model.prefix_states()
    assert [keys.shape[1] for keys, _ in model.prefix] == [prompt[0]] * 2
    assert (model.user_vectors(ids) - expected).abs().max() < TOLERANCE
    assert (model.padded_user_vectors(ids) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(("kind", "sizes"), DECODERS)
@torch.no_grad()
def test_serving_gives_the_same_user_vectors(kind: str, sizes: dict[str, int]) -> None:
    model, ids = recommender(kind, **sizes), histories()
    expected = model.user_vectors(ids)
    model.serving = True
    assert (model.user_vectors(ids) - expected).abs().max() < TOLERANCE
    assert (
        model.user_vectors(ids[:1, -1:]) - recommender(kind, **sizes).user_vectors(ids[:1, -1:])
    ).abs().max() < TOLERANCE


@torch.no_grad()
def test_without_a_prompt_there_is_no_prefix() -> None:
    assert recommender(prompt=(0, 2)).prefix_states() == ()


@torch.no_grad()
def test_an_empty_history_is_scored_and_changes_no_other() -> None:
    model, ids = recommender(), histories()
    empty = torch.cat([ids, torch.zeros(1, ids.shape[1], dtype=torch.int64)])
    scores = model(empty)
    assert torch.isfinite(scores[-1, 1:]).all()
    assert (scores[:-1, 1:] - model(ids)[:, 1:]).abs().max() < TOLERANCE


@torch.no_grad()
def test_padding_is_never_ranked_first() -> None:
    assert (recommender()(histories())[:, 0] == float("-inf")).all()


@torch.no_grad()
def test_a_history_of_one_item_and_a_batch_of_one() -> None:
    model, ids = recommender(), histories()
    alone = model.user_vectors(ids[:1, -1:])
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.int64), ids[:1, -1:]], dim=1)
    assert (alone - model.user_vectors(padded)).abs().max() < TOLERANCE


@torch.no_grad()
def test_training_rows_separate_histories() -> None:
    model, ids = recommender(), histories(rows=2)
    first, second = ids[0], ids[1][ids[1] > 0]
    tokens = torch.cat([first, second])
    segments = torch.tensor([1] * len(first) + [2] * len(second))[None]
    positions = torch.cat([torch.arange(len(first)), torch.arange(len(second))])[None]
    states = model.hidden_states(tokens, packing.rows(segments, positions))
    both = model.head(states[[len(first) - 1, -1]])
    assert (both - model.user_vectors(ids)).abs().max() < TOLERANCE


@torch.no_grad()
def test_a_saved_model_gives_the_same_bits(tmp_path: Path) -> None:
    model, ids = recommender(prompt=(2, 1)), histories()
    with silence_transformers():
        model.save_pretrained(tmp_path)
        again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(model(ids), again(ids))
    assert not list(tmp_path.glob("*.bin"))


@torch.no_grad()
def test_block_states_are_those_before_the_final_norm() -> None:
    model, ids = recommender(), histories(rows=1)
    layout = packing.rows(torch.ones_like(ids), torch.arange(ids.shape[1])[None])
    with model.block_states((0, 1)) as states:
        final = model.hidden_states(ids[0], layout)
    assert len(states) == 2 and states[0].shape == final.shape
    assert (model.backbone.norm(states[1]) - final).abs().max() < TOLERANCE


def test_a_longer_batch_mate_does_not_change_a_history() -> None:
    model, ids = recommender(), histories()
    with torch.no_grad():
        together, alone = model.user_vectors(ids)[-1], model.user_vectors(ids[-1:, -1:])[0]
    assert (together - alone).abs().max() < TOLERANCE


def test_a_saved_model_does_not_contain_the_path_of_its_backbone(
    dataset: Artefact, tmp_path: Path
) -> None:
    shape = random_models.llm_config(hidden=16, layers=1, heads=2, intermediate=16)
    configs = []
    for place in ("here", "there"):
        shape.save_pretrained(tmp_path / place)
        backbone = AutoConfig.from_pretrained(tmp_path / place)
        assert str(tmp_path) in backbone.name_or_path
        model = SequentialRecommender(RecommenderConfig(backbone_config=backbone, num_items=30))
        out = tmp_path / f"saved-{place}"
        save_model(model, dataset, out)
        configs.append((out / "config.json").read_text())
    assert configs[0] == configs[1] and str(tmp_path) not in configs[0]
