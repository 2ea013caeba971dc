"""Where the files that a recipe names are sought, and what numbers and text a setting takes."""

from pathlib import Path

import pytest
from recipe_files import TEACH, TOP, faults, read

from slmc.commands import cli
from slmc.errors import RecipeError
from slmc.recipe import load, resolved_yaml

LOG = "user_id,item_id,timestamp\n" + "".join(
    f"u{u},i{i},{i}\n" for u in range(6) for i in range(6)
)
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe and its log in ``sub``; the working directory is above."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/mine.yaml").write_text(TOP.replace("a.csv", "log.csv") + TEACH)
    (tmp_path / "sub/log.csv").write_text(LOG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "sub"


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("log.csv", "sub/log.csv"),
        ("./log.csv", "sub/log.csv"),
        ("../logs/*.csv", "logs/*.csv"),
        ("file://log.csv", "sub/log.csv"),
        ("/data/log.csv", "/data/log.csv"),
        ("file:///data/log.csv", "file:///data/log.csv"),
        ("~/log.csv", "~/log.csv"),
        ("s3://bucket/log.csv", "s3://bucket/log.csv"),
    ],
)
def test_a_source_is_sought_beside_its_recipe(elsewhere: Path, written: str, found: str) -> None:
    text = TOP.replace("a.csv", f"'{written}', titles: {{source: '{written}'}}")
    (elsewhere / "mine.yaml").write_text(text + TEACH)
    data = load("sub/mine.yaml").data
    assert data.titles is not None
    assert (data.source, data.titles.source) == (found, found)


def test_a_glob_beside_a_recipe_whose_folder_looks_like_one(elsewhere: Path) -> None:
    folder = elsewhere.rename("sub[1]")
    text = (folder / "mine.yaml").read_text()
    (folder / "mine.yaml").write_text(text.replace("log.csv", "'*.csv'"))
    load("sub[1]/mine.yaml", files=True)


def test_a_source_of_set_is_sought_in_the_working_directory(elsewhere: Path) -> None:
    assert load("sub/mine.yaml", sets=["data.source=log.csv"]).data.source == "log.csv"


def test_a_variable_of_the_file_belongs_to_the_file(elsewhere: Path) -> None:
    (elsewhere / "mine.yaml").write_text(TOP.replace("a.csv", "'${LOG}'") + TEACH)
    assert load("sub/mine.yaml", env={"LOG": "b.csv"}).data.source == "sub/b.csv"


def test_an_llm_beside_the_recipe_is_taken_and_a_hub_id_stays_one(elsewhere: Path) -> None:
    def backbone(name: str) -> str:
        body = f"  - teach: {{backbone: '{name}', layers: 4}}\n"
        (elsewhere / "mine.yaml").write_text(TOP + body)
        (step,) = (step for step in load("sub/mine.yaml").steps if step.stage == "teach")
        return str(step.config.model_dump()["backbone"])

    (elsewhere / "llm").mkdir()
    assert backbone("llm") == "./sub/llm"
    assert backbone("./none") == "./sub/none"
    assert backbone("tiny.gguf") == "./sub/tiny.gguf"
    assert backbone("Org/llm") == "Org/llm"
    assert backbone("random://llama?layers=4") == "random://llama?layers=4"


def test_run_and_check_from_another_directory(elsewhere: Path, capsys: Captured) -> None:
    assert cli.call(["recipe", "check", "sub/mine.yaml"]) == 0
    assert cli.call(["run", "sub/mine.yaml", "--plan"]) == 0
    assert "prepare" in capsys.readouterr().out


def test_where_the_log_lies_is_no_part_of_a_key(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmc.pipeline import plan
    from slmc.recipe import Recipe

    def key(recipe: Recipe) -> str:
        first = plan(recipe)[0].key
        assert first is not None
        return first.digest

    keys = [key(load("sub/mine.yaml"))]
    Path("copy.yaml").write_text(resolved_yaml(load("sub/mine.yaml")))
    keys.append(key(load("copy.yaml")))
    monkeypatch.chdir(elsewhere)
    keys.append(key(load("mine.yaml")))
    (elsewhere / "log.csv").rename("log.tsv")
    renamed = key(load("mine.yaml", sets=["data.source=log.tsv"]))
    assert len(set(keys)) == 1 and renamed not in keys


def test_the_recipe_of_a_run_finds_the_log_from_its_own_folder(elsewhere: Path) -> None:
    run = Path("runs/mine")
    run.mkdir(parents=True)
    text = resolved_yaml(load("sub/mine.yaml"), run)
    assert "source: ../../sub/log.csv" in text
    (run / "recipe.resolved.yaml").write_text(text)
    load(run / "recipe.resolved.yaml", files=True)


def test_check_says_what_is_missing_and_in_which_line(elsewhere: Path) -> None:
    (elsewhere / "log.csv").rename(elsewhere / "logs.csv")
    text = (elsewhere / "mine.yaml").read_text().replace("'random://llama'", "./llm")
    (elsewhere / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load("sub/mine.yaml", files=True)
    assert caught.value.what.splitlines() == [
        "sub/mine.yaml:3: data.source: sub/log.csv does not exist. Check the path; a similar "
        "one is sub/logs.csv.",
        "sub/mine.yaml:5: teach.backbone: ./sub/llm does not exist.",
    ]


def test_check_reads_the_head_of_the_log(elsewhere: Path) -> None:
    (elsewhere / "log.csv").write_text("user_id,item_id,when\n1,2,3\n")
    with pytest.raises(RecipeError) as caught:
        load("sub/mine.yaml", files=True)
    assert caught.value.what == (
        "sub/mine.yaml:3: data.source: sub/log.csv has no column 'timestamp'; it has 'user_id', "
        "'item_id', 'when'. Set columns.time to one of them, or to null if the rows are already "
        "in time order."
    )


def test_check_compares_a_format_with_the_lines(elsewhere: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load("sub/mine.yaml", sets=["data.format=recbole"], files=True)
    assert "sub/log.csv has no column 'user_id'" in caught.value.what


def test_check_reads_the_head_of_the_titles(elsewhere: Path) -> None:
    (elsewhere / "titles.csv").write_text("item_id,name\n1,One\n")
    with pytest.raises(RecipeError) as caught:
        load("sub/mine.yaml", sets=["data.titles={source: sub/titles.csv}"], files=True)
    assert caught.value.what == (
        "--set data.titles={source: sub/titles.csv}: data.titles.source: sub/titles.csv has no "
        "column 'title'; it has 'item_id', 'name'. Set titles.title to one of them."
    )


@pytest.mark.parametrize(
    "name",
    ["log.csv #1.csv", "*.csv", "&a.csv", "!x.csv", "a: b.csv", "123", "[1].csv", "a${B}.csv", " "],
)
def test_the_text_of_a_set_is_taken_as_it_stands(file: Path, name: str) -> None:
    assert read(file, TOP + TEACH, f"data.source={name}").data.source == name


@pytest.mark.parametrize(
    ("change", "of", "value"),
    [
        ("data.source='my log.csv'", "source", "my log.csv"),
        ("data.columns={user: who}", "columns", "who"),
        ("data.core= 7", "core", 7),
        ("data.terms=", "terms", None),
    ],
)
def test_other_forms_of_a_set(file: Path, change: str, of: str, value: object) -> None:
    got = getattr(read(file, TOP + TEACH, change).data, of)
    assert (got.user if of == "columns" else got) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teach.lr=1e400", 'teach.lr: should be a finite number, not "1e400"'),
        ("teach.lr=nan", 'teach.lr: should be a finite number, not "nan"'),
        ("teach.lr=1e39", "teach.lr: should be at most 4294967295, not 1e+39"),
        (
            "seed=123456789012345678901234",
            "seed: should be at most 4294967295, not 123456789012345678901234",
        ),
        (f"data.core={10**50}", f"data.core: should be at most 4294967295, not 1{'0' * 39}…"),
        ("data.max_malformed=1e400", "data.max_malformed: should be at most 4294967295, not 1e400"),
    ],
)
def test_numbers_beyond_all_use_are_refused(file: Path, change: str, message: str) -> None:
    assert faults(file, TOP + TEACH, change) == [f"--set {change}: {message}"]


def test_such_numbers_are_refused_in_the_file_too(file: Path) -> None:
    gate = "gates:\n  - {metric: ndcg@10, baseline: teach, max_drop: 1e-5}\n"
    assert read(file, TOP + TEACH + gate).gates[0].max_drop == 1e-5
    text = TOP + "seed: 1e400\n"
    assert "r.yaml:5: seed: should be" in "".join(
        faults(file, text.replace("steps:\n", "steps: []\n"))
    )
