"""``slmc.spark``: the same rows as ``slmc score``. Spark itself only in the slow test."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from served import catalogue, engine, model, place

import slmc.spark
from slmc.artefact import Artefact
from slmc.errors import ArtefactError, DataError, UsageError
from slmc.scoring.score import score
from slmc.scoring.settings import Settings

__all__ = ["catalogue", "engine", "model", "place"]


@dataclass
class Type:
    text: str

    def simpleString(self) -> str:  # noqa: N802, as in Spark
        return self.text


@dataclass
class Field:
    name: str
    dataType: Type  # noqa: N815


class Frame:
    """A data frame of Spark, as far as its schema is read."""

    def __init__(self, **types: str) -> None:
        self.schema = self
        self.fields = [Field(name, Type(text)) for name, text in types.items()]


def histories(users: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    lists = [rng.integers(101, 144, user % 9).tolist() for user in range(users)]
    return pl.DataFrame({"user_id": range(users), "items": lists})


def scored(engine: Artefact, folder: Path, users: int) -> pl.DataFrame:
    histories(users).write_parquet(folder / "h.parquet")
    output = folder / "top.parquet"
    score(engine, Settings(str(folder / "h.parquet"), str(output), k=5, exclude_seen=True))
    return pl.read_parquet(output)


@pytest.mark.parametrize("kind", ["bigint", "string"])
def test_frames_of_pandas_get_the_rows_of_score(
    kind: str, engine: Artefact, tmp_path: Path
) -> None:
    expected = scored(engine, tmp_path, 60)
    recommend = slmc.spark.recommender(
        str(engine.path), Frame(user_id="bigint", items=f"array<{kind}>", age="int"), 5, True
    )
    assert recommend.schema == (
        f"`user_id` bigint, items array<{kind}>, scores array<float>, `by` string"
    )
    given = histories(60)
    if kind == "string":
        given = given.with_columns(pl.col("items").cast(pl.List(pl.String)))
    frames = [given[start : start + 25].to_pandas() for start in range(0, 60, 25)]
    answers = pl.concat([pl.from_pandas(one) for one in recommend(iter(frames))])
    items = answers["items"].cast(pl.List(pl.Int64))
    assert answers.with_columns(items).drop("scores").equals(expected.drop("scores"))
    for one, other in zip(answers["scores"], expected["scores"], strict=True):
        np.testing.assert_allclose(one.to_numpy(), other.to_numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("types", "what"),
    [
        ({"user_id": "bigint", "item_id": "bigint"},
         "the frame: no column holds lists of items; it has user_id bigint, item_id bigint."),
        ({"user_id": "double", "items": "array<bigint>"},
         "the frame: no column holds users as texts or integers; it has user_id double, items "
         "array<bigint>."),
    ],
)  # fmt: skip
def test_frames_without_users_or_lists(types: dict[str, str], what: str, engine: Artefact) -> None:
    with pytest.raises(DataError) as caught:
        slmc.spark.recommender(str(engine.path), Frame(**types))
    assert str(caught.value) == what


def test_other_arguments(engine: Artefact, model: Artefact) -> None:
    frame = Frame(user_id="string", items="array<string>")
    with pytest.raises(UsageError, match="k: 13 items were requested"):
        slmc.spark.recommender(str(engine.path), frame, 13)
    with pytest.raises(UsageError, match="expected a data frame of Spark, not DataFrame"):
        slmc.spark.recommender(str(engine.path), pl.DataFrame())
    recommend = slmc.spark.recommender(str(engine.path), frame)
    with pytest.raises(ArtefactError, match="is another artefact on this machine"):
        slmc.spark._opened(str(model.path), recommend.digest, 1)


JOB = """
import os, signal, sys
from pathlib import Path
from pyspark.sql import SparkSession
import slmc.spark

master, engine = sys.argv[1:]
spark = (
    SparkSession.builder.master(master)
    .config("spark.ui.enabled", "false").config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.driver.host", "127.0.0.1").config("spark.default.parallelism", 4)
    .config("spark.sql.execution.arrow.maxRecordsPerBatch", 100).getOrCreate()
)
histories = spark.read.parquet("h.parquet").repartition(4, "user_id")
recommend = slmc.spark.recommender(engine, histories, 5, True)
folder = Path.cwd()

def killed_once(frames):
    for number, frame in enumerate(recommend(frames)):
        yield frame
        try:
            (folder / "killed").touch(exist_ok=False)
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)

histories.mapInPandas(killed_once, recommend.schema).write.parquet("spark")
spark.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize("master", ["local[2,4]", "local-cluster[2,1,1024]"])
def test_spark_gives_the_same_rows_although_a_python_worker_is_killed(
    master: str, engine: Artefact, tmp_path: Path
) -> None:
    pyspark = pytest.importorskip("pyspark", reason="needs pyspark: pip install --group growth")
    if shutil.which("java") is None:
        pytest.skip("needs Java: apt-get install openjdk-17-jre-headless")
    expected = scored(engine, tmp_path, 2000)
    environment: dict[str, Any] = os.environ | {
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
    }
    command = [sys.executable, "-c", JOB, master, str(engine.path)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "killed").exists()
    answers = pl.read_parquet(tmp_path / "spark/*.parquet").sort("user_id")
    assert answers.drop("scores").equals(expected.drop("scores"))
    for one, other in zip(answers["scores"], expected["scores"], strict=True):
        np.testing.assert_allclose(one.to_numpy(), other.to_numpy(), atol=1e-4)
