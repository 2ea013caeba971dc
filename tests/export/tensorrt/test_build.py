"""Plans: what is checked before one is built or loaded, and building them for real."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from slmc import artefact
from slmc.artefact import Artefact, sha256
from slmc.compress.config import QuantizeConfig
from slmc.compress.quantize.quantize import quantize
from slmc.errors import ArtefactError, BrokenRunError, MissingError, UsageError
from slmc.export.config import ExportConfig, ParityConfig, TensorrtConfig, TritonConfig
from slmc.export.constraints import LARGEST_K
from slmc.export.export import export
from slmc.export.runtime.engine import describe
from slmc.export.tensorrt import build as tensorrt
from slmc.export.tensorrt import flavours
from slmc.export.tensorrt.build import profiles
from slmc.export.tensorrt.flavours import FLAVOURS, Driver
from slmc.export.tensorrt.plan import TYPED, Profile, logger_of
from slmc.export.tensorrt.runtime import Entry, TensorrtEngine
from slmc.export.triton import repository as triton
from slmc.export.triton.repository import PLAN
from slmc.model.loading import load_model

Place = Callable[[str], Path]
HISTORY = 12
"""As conftest.py makes them."""
ENTRY = {
    "flavour": "tensorrt",
    "version": "10.13.0",
    "compute_capability": "9.0",
    "precision": "bf16",
    "profiles": [{"batch": 1, "length": HISTORY}, {"batch": 64, "length": HISTORY}],
    "graph_sha256": "",
}


def config(**settings: Any) -> ExportConfig:
    given = {"flavour": "tensorrt-rtx"} | settings
    return ExportConfig(
        formats=("tensorrt",),
        top_k=10,
        parity=ParityConfig(histories=40),
        tensorrt=TensorrtConfig(**given),
    )


def test_profiles_are_pairs_of_a_batch_and_a_length() -> None:
    assert profiles(config(), 50) == (Profile(1, 50), Profile(64, 50))
    asked = config(batch=(8, 1), length=(10, 50))
    assert profiles(asked, 50) == (Profile(1, 10), Profile(1, 50), Profile(8, 10), Profile(8, 50))
    with pytest.raises(UsageError) as caught:
        profiles(config(length=(60,)), 50)
    assert str(caught.value) == "tensorrt.length: 60 is more than the model's history of 50."


def plan_of(folder: Path, **changes: Any) -> Entry:
    """An engine's folder with an entry for a plan that was built from a file beside it."""
    (folder / TYPED).parent.mkdir(parents=True, exist_ok=True)
    (folder / TYPED).write_bytes(b"graph")
    entry = ENTRY | {"graph_sha256": sha256(folder / TYPED)} | changes
    said = {"layout": "packed", "top_k": 10, "opset": 21, "precision": "fp32"}
    said |= {"history": HISTORY, "num_items": 30, "source": ""}
    (folder / "engine.json").write_text(json.dumps(said | {"tensorrt": entry}))
    return Entry.read(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": "10.14.1"}, "was built by tensorrt 10.14.1, and 10.13.0 is installed"),
        ({"compute_capability": "8.6"}, "was built for compute capability 8.6, and this is 9.0"),
        ({"graph_sha256": "0"}, f"was not built from the {TYPED} beside it"),
    ],
)
def test_a_plan_of_elsewhere_is_refused_with_the_command_that_mends_it(
    changes: dict[str, str], why: str, tmp_path: Path
) -> None:
    plan_of(tmp_path).check(tmp_path, "10.13.0", (9, 0))
    plan_of(tmp_path, compute_capability=None).check(tmp_path, "10.13.0", (9, 0))
    with pytest.raises(ArtefactError) as caught:
        plan_of(tmp_path, **changes).check(tmp_path, "10.13.0", (9, 0))
    assert str(caught.value) == f"{tmp_path / PLAN} {why}."
    assert caught.value.remedy == (
        "Build it again on this machine: `slmc export MODEL --formats tensorrt "
        "--tensorrt.flavour tensorrt --tensorrt.precision bf16`."
    )


def test_the_checks_come_before_tensorrt_sees_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_of(tmp_path)
    monkeypatch.setattr(flavours, "driver", lambda: Driver(problem="no driver"))
    with pytest.raises(MissingError) as missing:
        TensorrtEngine(tmp_path)
    assert str(missing.value) == "tensorrt: a plan runs on a GPU; no driver."
    plan_of(tmp_path, flavour="tensorrt-rtx")
    monkeypatch.setattr(flavours, "driver", lambda: Driver((9, 0)))
    with pytest.raises(MissingError) as missing:
        TensorrtEngine(tmp_path)
    assert str(missing.value) == "tensorrt-rtx has no kernels for compute capability 9.0."
    plan_of(tmp_path)
    other = SimpleNamespace(__version__="11.4.0")  # it has nothing that loads a plan
    monkeypatch.setattr(flavours, "builder", lambda _: other)
    with pytest.raises(ArtefactError) as refused:
        TensorrtEngine(tmp_path)
    assert "was built by tensorrt 10.13.0, and 11.4.0 is installed" in str(refused.value)


def test_an_engine_without_a_plan(packed: Artefact) -> None:
    with pytest.raises(ArtefactError) as caught:
        TensorrtEngine.open(packed)
    assert str(caught.value) == f"{packed.path / 'engine.json'} describes no TensorRT plan."


def test_a_shape_takes_the_smallest_profile_that_it_fits(tmp_path: Path) -> None:
    engine = TensorrtEngine.__new__(TensorrtEngine)
    shapes = [{"batch": b, "length": n} for b, n in ((1, 5), (1, 12), (64, 5), (64, 12))]
    engine.entry = plan_of(tmp_path, profiles=shapes)
    asked = [(1, 1), (1, 5), (1, 6), (2, 5), (64, 12)]
    assert [engine._profile(shape) for shape in asked] == [0, 0, 1, 2, 3]
    for shape in ((65, 1), (1, 13), (0, 3)):
        with pytest.raises(ValueError) as caught:
            engine._profile(shape)
        assert str(caught.value) == (
            f"item_ids: {shape[0]} x {shape[1]} fits no profile of the plan "
            "(1 x 5, 1 x 12, 64 x 5, 64 x 12)"
        )


def test_triton_gets_a_variant_of_a_full_plan_alone(packed: Artefact, tmp_path: Path) -> None:
    for flavour in FLAVOURS:
        folder = tmp_path / flavour
        shutil.copytree(packed.path, folder)
        tensorrt.describe(folder, ENTRY | {"flavour": flavour})
        (folder / PLAN).parent.mkdir()
        (folder / PLAN).write_bytes(b"plan")
        triton.write(folder, ExportConfig(triton=TritonConfig()), [np.array([1, 2], np.int32)])
    assert not (tmp_path / "tensorrt-rtx/triton/recommender_tensorrt").exists()
    variant = tmp_path / "tensorrt/triton/recommender_tensorrt"
    assert (variant / "1/model.plan").read_bytes() == b"plan"
    text = (variant / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"\nmax_batch_size: 64\n' in text
    assert 'instance_group [ { count: 1 kind: KIND_GPU profile: [ "0", "1" ] } ]' in text
    assert describe(tmp_path / "tensorrt").top_k == 10


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "fp8"])
@pytest.mark.usefixtures("rtx")
def test_a_plan_is_built_on_the_processor(
    precision: str, dataset: Artefact, prompted: Artefact, place: Place
) -> None:
    asked = config(precision=precision, batch=(1, 8), length=(4,))
    engine = export(asked, {"data": dataset, "model": prompted}, place("engine"))
    entry = json.loads((engine.path / "engine.json").read_text())["tensorrt"]
    assert entry["flavour"] == "tensorrt-rtx" and entry["precision"] == precision
    assert entry["compute_capability"] is None
    assert entry["profiles"] == [
        {"batch": batch, "length": length} for batch in (1, 8) for length in (4, HISTORY)
    ]
    assert entry["graph_sha256"] == engine.manifest.files[TYPED]
    assert entry["parity"]["overlap"] >= 0.98 and 0 < entry["parity"]["overlap_with_float"] <= 1
    assert engine.manifest.metrics["tensorrt"]["precision"] == precision
    assert (engine.path / PLAN).stat().st_size > 100_000
    assert artefact.load(engine.path).digest == engine.digest
    if flavours.driver().capability is None:
        assert entry["executed"] is None
        with pytest.raises(MissingError) as caught:
            TensorrtEngine.open(engine)
        assert str(caught.value).startswith("tensorrt-rtx: a plan runs on a GPU; ")


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"group_size": 16}, {"group_size": 16, "item_table": "int4"}])
@pytest.mark.usefixtures("rtx")
def test_codes_of_a_quantized_model_are_built(
    how: dict[str, Any], dataset: Artefact, model: Artefact, place: Place
) -> None:
    given = {"method": "rtn", "bits": 4, "calibration": 24} | how
    inputs = {"data": dataset, "model": model}
    small = quantize(QuantizeConfig(**given), inputs, place("quantized"))
    engine = export(config(), {"data": dataset, "model": small}, place("engine"))
    entry = json.loads((engine.path / "engine.json").read_text())["tensorrt"]
    assert entry["precision"] == "int4"
    kinds = [t.data_type for t in onnx.load(engine.path / TYPED).graph.initializer]
    assert onnx.TensorProto.INT4 in kinds
    assert (onnx.TensorProto.INT8 in kinds) == ("item_table" in how)


def graph_of(file: Path, *nodes: onnx.NodeProto, k: int) -> Path:
    """A graph of ``item_ids`` to ``out`` that no model has."""
    h = onnx.helper
    graph = h.make_graph(
        nodes,
        "graph",
        [h.make_tensor_value_info("item_ids", onnx.TensorProto.INT64, ["batch", "length"])],
        [h.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array([k]), "k")],
    )
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    file.write_bytes(made.SerializeToString())
    return file


@pytest.mark.slow
def test_what_the_parser_and_the_build_say_is_told(rtx: Any, tmp_path: Path) -> None:
    """With graphs that are refused before, where they come from a model."""
    node, flavour, shapes = onnx.helper.make_node, FLAVOURS["tensorrt-rtx"], (Profile(1, 5000),)
    cast = node("Cast", ["item_ids"], ["x"], to=onnx.TensorProto.FLOAT)

    def build(*nodes: onnx.NodeProto, k: int = 5) -> bytes:
        graph = graph_of(tmp_path / "graph.onnx", cast, *nodes, k=k)
        return tensorrt.build(rtx, flavour, graph, shapes, config())

    assert len(build(node("TopK", ["x", "k"], ["out", "rows"]))) > 1000
    with pytest.raises(UsageError) as refused:
        build(node("Det", ["x"], ["out"]))
    assert str(refused.value).startswith("tensorrt: its parser refuses Det: ")
    with pytest.raises(BrokenRunError) as broken:
        build(node("TopK", ["x", "k"], ["out", "rows"]), k=LARGEST_K + 1)
    assert str(broken.value).startswith("tensorrt builds no plan: ")
    assert "K exceeds the maximum value allowed (3840)" in str(broken.value)


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_the_doctor_knows_it_from_a_look() -> None:
    from slmc.commands import diagnosis as doctor

    said = {one.what: one.found for one in doctor.examine()}["TensorRT (tensorrt-rtx)"]
    assert ": can build plans" in said


class Full(SimpleNamespace):
    """As much of full TensorRT as a build calls; it remembers what it was told."""

    def __init__(self, version: str) -> None:
        said: dict[str, Any] = {"shapes": [], "caches": []}

        class Logger:
            ERROR = 1

        class Cache(SimpleNamespace):
            def serialize(self) -> bytes:
                return self.known + b"more"

        class Settings:
            def add_optimization_profile(self, profile: Any) -> int:
                return len(said["shapes"]) - 1

            def set_memory_pool_limit(self, pool: str, size: int) -> None:
                said[pool] = size

            def clear_flag(self, flag: str) -> None:
                said["cleared"] = flag

            def create_timing_cache(self, known: bytes) -> Cache | None:
                said["caches"].append(known)
                return None if known == b"broken" else Cache(known=known)

            def set_timing_cache(self, kept: Cache, ignore_mismatch: bool) -> bool:
                return not ignore_mismatch

        class Builder:
            def __init__(self, logger: Logger) -> None: ...

            def create_network(self, flags: int) -> None:
                said["flags"] = flags

            def create_builder_config(self) -> Settings:
                return Settings()

            def create_optimization_profile(self) -> Any:
                return SimpleNamespace(set_shape=lambda *shape: said["shapes"].append(shape))

            def build_serialized_network(self, network: None, settings: Settings) -> bytes:
                return b"plan"

        super().__init__(
            __version__=version,
            said=said,
            ILogger=Logger,
            Builder=Builder,
            OnnxParser=lambda *_: SimpleNamespace(parse_from_file=lambda _: True),
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
            MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
            BuilderFlag=SimpleNamespace(TF32="tf32"),
        )


@pytest.mark.parametrize(("version", "flags"), [("10.13.3.9", 2), ("11.4.0.106", 0)])
def test_full_tensorrt_is_told_all_of_it(
    version: str, flags: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strongly typed in both majors, kernel times kept between builds of one GPU and version."""
    module: Any = Full(version)
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(flavours, "driver", lambda: Driver((9, 0)))
    monkeypatch.setattr(flavours, "builder", lambda _: module)
    logger_of.cache_clear()
    asked = config(flavour="tensorrt", batch=(1, 8), memory_mb=3)
    shapes = profiles(asked, HISTORY)

    def build() -> bytes:
        graph = tmp_path / "model.onnx"
        return tensorrt.build(module, FLAVOURS["tensorrt"], graph, shapes, asked)

    kept = tmp_path / f"cache/tensorrt/tensorrt-{version}-sm9.0.timings"
    assert build() == b"plan" and kept.read_bytes() == b"more"
    assert build() == b"plan" and kept.read_bytes() == b"moremore"
    kept.write_bytes(b"broken")
    assert build() == b"plan" and kept.read_bytes() == b"more"
    assert [file.name for file in kept.parent.iterdir()] == [kept.name]
    said = module.said
    assert said["caches"] == [b"", b"more", b"broken", b""]
    assert (said["flags"], said["cleared"], said["workspace"]) == (flags, "tf32", 3 * 2**20)
    assert said["shapes"][:2] == [
        ("item_ids", (1, 1), (1, HISTORY), (1, HISTORY)),
        ("item_ids", (1, 1), (8, HISTORY), (8, HISTORY)),
    ]
    logger_of.cache_clear()


@pytest.mark.parametrize(
    ("precision", "gpu", "lacking"),
    [
        ("bf16", (7, 5), "bf16 needs products in bf16, which compute capability 7.5 has not."),
        ("fp8", (8, 6), "fp8 needs 8-bit floats, which compute capability 8.6 has not."),
    ],
)
def test_a_precision_needs_a_gpu_that_has_it(
    precision: str,
    gpu: tuple[int, int],
    lacking: str,
    model: Artefact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flavours, "driver", lambda: Driver(gpu))
    monkeypatch.setattr(flavours, "builder", lambda _: Full("10.13"))
    loaded = load_model(model)
    for flavour in FLAVOURS.values():
        if flavour.runs_on(gpu):
            with pytest.raises(MissingError) as caught:
                asked = config(flavour=flavour.name, precision=precision)
                tensorrt.planned(asked, loaded, 10, {})
            assert str(caught.value) == f"tensorrt: {lacking}"
    half = tensorrt.planned(config(flavour="tensorrt", precision="fp16"), loaded, 10, {})
    assert half.precision == "fp16" and half.profiles == profiles(config(), HISTORY)
