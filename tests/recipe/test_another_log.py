"""A recipe on another log: what belongs to the first one does not go along."""

from pathlib import Path

import pytest
from recipe_files import TEACH, faults, read

from slmc.commands import cli
from slmc.data.config import PrepareConfig, Terms
from slmc.recipe import load, packaged, resolved_yaml, text_of

OF_MOVIES = [
    name
    for name in packaged()
    if "ml-100k.inter" in (head := text_of(name).partition("steps:")[0]) and "titles:" in head
]
DATA = """version: 1
name: x
data:
  source: wheel/ratings.inter
  titles: {of: ratings.inter, source: ratings.item}
  terms: {of: ratings.inter, text: Cite us.}
steps:
"""


@pytest.mark.parametrize("name", OF_MOVIES)
def test_terms_and_titles_of_the_packaged_recipes_stay_with_their_log(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = load(name, env={}).data
    assert own.terms is not None and own.terms.text.startswith("MovieLens-100K is GroupLens'")
    assert own.titles is not None and not caplog.messages
    other = load(name, sets=["data.source=sales.csv"], env={})
    assert (other.data.terms, other.data.titles, other.data.format) == (None, None, "auto")
    assert "movie" not in resolved_yaml(other).lower()


def test_titles_and_terms_are_left_out_aloud(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = read(file, DATA + TEACH).data
    assert kept.titles is not None and kept.terms == Terms(text="Cite us.", of="ratings.inter")
    assert caplog.messages == []
    edited = read(file, DATA.replace("wheel/ratings.inter", "sales.csv") + TEACH).data
    assert (edited.titles, edited.terms) == (None, None)
    other = "it is for a source whose name contains 'ratings.inter', but data.source is"
    assert caplog.messages == [
        f"./r.yaml:5: data.titles is ignored: {other} sales.csv",
        f"./r.yaml:6: data.terms is ignored: {other} sales.csv",
    ]


def test_titles_and_terms_of_no_source_go_with_any(file: Path) -> None:
    text = DATA.replace("of: ratings.inter, ", "") + TEACH
    data = read(file, text, "data.source=sales.csv").data
    assert data.titles is not None and data.terms == Terms(text="Cite us.")
    plain = read(file, text.replace("{text: Cite us.}", "Cite us."), "data.source=sales.csv").data
    assert plain.terms == data.terms


def test_faults_of_terms_have_their_line(file: Path) -> None:
    assert faults(file, DATA.replace("text:", "txt:") + TEACH) == [
        "./r.yaml:6: data.terms.text: is required",
        "./r.yaml:6: data.terms.txt: there is no key 'txt'. Did you mean 'text'?",
    ]


def test_a_dataset_of_another_source_has_no_terms() -> None:
    terms = {"of": "movies", "text": "Cite us."}
    assert PrepareConfig.model_validate({"source": "movies.csv", "terms": terms}).terms
    assert PrepareConfig.model_validate({"source": "sales.csv", "terms": terms}).terms is None


def test_a_copy_is_named_after_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.call(["recipe", "cp", "quickstart", "mine.yaml"]) == 0
    text = Path("mine.yaml").read_text()
    assert load("mine.yaml", env={}).name == "mine"
    assert "slmc run mine.yaml --plan" in text and "slmc run quickstart" not in text
    assert cli.call(["recipe", "cp", "quickstart", "my own-.yaml"]) == 0
    assert load("my own-.yaml", env={}).name == "quickstart"


def test_the_starter_knows_no_log() -> None:
    data = load("custom", env={}).data
    assert (data.source, data.titles, data.terms) == ("log.csv", None, None)
    assert "movie" not in text_of("custom").lower()


def test_texts_of_another_log_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "sales.csv"
    log.write_text("user_id,item_id,timestamp\n1,2,3\n")
    assert cli.call(["recipe", "check", "texts", "--set", f"data.source={log}"]) == 2
    error = "text.item_embeddings: hybrid: the data has no texts of items. Set data.items."
    assert error in capsys.readouterr().err
