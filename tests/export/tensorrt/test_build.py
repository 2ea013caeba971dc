"""Checks before a plan is built or loaded, and real builds."""

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
from slmc.export.runtime.engine import read_description
from slmc.export.tensorrt import build as tensorrt
from slmc.export.tensorrt import flavours
from slmc.export.tensorrt.build import profiles
from slmc.export.tensorrt.flavours import FLAVOURS, Driver
from slmc.export.tensorrt.plan import PLAN, PLAN_GRAPH, Profile, logger_of
from slmc.export.tensorrt.runtime import Entry, TensorrtEngine
from slmc.export.triton import repository as triton
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
    options = {"flavour": "tensorrt-rtx"} | settings
    return ExportConfig(
        formats=("tensorrt",),
        top_k=10,
        parity=ParityConfig(histories=40),
        tensorrt=TensorrtConfig(**options),
    )


def test_profiles_are_pairs_of_a_batch_and_a_length() -> None:
    assert profiles(config(), 50) == (Profile(1, 50), Profile(64, 50))
    shapes = profiles(config(batch=(8, 1), length=(10, 50)), 50)
    assert shapes == (Profile(1, 10), Profile(1, 50), Profile(8, 10), Profile(8, 50))


def plan_of(folder: Path, **changes: Any) -> Entry:
    """The folder of an engine with the entry and the graph of a plan."""
    (folder / PLAN_GRAPH).parent.mkdir(parents=True, exist_ok=True)
    (folder / PLAN_GRAPH).write_bytes(b"graph")
    entry = ENTRY | {"graph_sha256": sha256(folder / PLAN_GRAPH)} | changes
    engine = {"layout": "packed", "top_k": 10, "opset": 21, "precision": "fp32"}
    engine |= {"history": HISTORY, "num_items": 30, "source": ""}
    (folder / "engine.json").write_text(json.dumps(engine | {"tensorrt": entry}))
    return Entry.read(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": "10.14.1"}, "was built by tensorrt 10.14.1, but 10.13.0 is installed"),
        ({"compute_capability": "8.6"}, "was built for compute capability 8.6, this GPU has 9.0"),
        ({"graph_sha256": "0"}, f"was not built from {PLAN_GRAPH} in the same folder"),
    ],
)
def test_a_plan_that_cannot_run_here_is_refused_with_the_command_to_rebuild_it(
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
    other = SimpleNamespace(__version__="11.4.0")  # without anything that loads a plan
    monkeypatch.setattr(flavours, "module_for_building", lambda _: other)
    with pytest.raises(ArtefactError) as refused:
        TensorrtEngine(tmp_path)
    assert "was built by tensorrt 10.13.0, but 11.4.0 is installed" in str(refused.value)


def test_an_engine_without_a_plan(packed: Artefact) -> None:
    with pytest.raises(ArtefactError) as caught:
        TensorrtEngine.open(packed)
    assert str(caught.value) == f"{packed.path / 'engine.json'} describes no TensorRT plan."


def test_a_shape_takes_the_smallest_profile_that_it_fits(tmp_path: Path) -> None:
    engine = TensorrtEngine.__new__(TensorrtEngine)
    shapes = [{"batch": b, "length": n} for b, n in ((1, 5), (1, 12), (64, 5), (64, 12))]
    engine.entry = plan_of(tmp_path, profiles=shapes)
    fitting = [(1, 1), (1, 5), (1, 6), (2, 5), (64, 12)]
    assert [engine._profile(shape) for shape in fitting] == [0, 0, 1, 2, 3]
    for shape in ((65, 1), (1, 13), (0, 3)):
        with pytest.raises(ValueError) as caught:
            engine._profile(shape)
        assert str(caught.value) == (
            f"item_ids: {shape[0]} x {shape[1]} fits no profile of the plan "
            "(1 x 5, 1 x 12, 64 x 5, 64 x 12)"
        )


def test_triton_gets_a_variant_only_for_a_full_plan(packed: Artefact, tmp_path: Path) -> None:
    for flavour in FLAVOURS:
        folder = tmp_path / flavour
        shutil.copytree(packed.path, folder)
        tensorrt.write_entry(folder, ENTRY | {"flavour": flavour})
        (folder / PLAN).parent.mkdir()
        (folder / PLAN).write_bytes(b"plan")
        triton.write(folder, ExportConfig(triton=TritonConfig()), [np.array([1, 2], np.int32)])
    assert not (tmp_path / "tensorrt-rtx/triton/recommender_tensorrt").exists()
    variant = tmp_path / "tensorrt/triton/recommender_tensorrt"
    assert (variant / "1/model.plan").read_bytes() == b"plan"
    text = (variant / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"\nmax_batch_size: 64\n' in text
    assert 'instance_group [ { count: 1 kind: KIND_GPU profile: [ "0", "1" ] } ]' in text
    assert read_description(tmp_path / "tensorrt").top_k == 10


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "fp8"])
@pytest.mark.usefixtures("rtx")
def test_a_plan_is_built_on_the_cpu(
    precision: str, dataset: Artefact, prompted: Artefact, place: Place
) -> None:
    settings = config(precision=precision, batch=(1, 8), length=(4,))
    engine = export(settings, {"data": dataset, "model": prompted}, place("engine"))
    entry = json.loads((engine.path / "engine.json").read_text())["tensorrt"]
    assert entry["flavour"] == "tensorrt-rtx" and entry["precision"] == precision
    assert entry["compute_capability"] is None
    assert entry["profiles"] == [
        {"batch": batch, "length": length} for batch in (1, 8) for length in (4, HISTORY)
    ]
    assert entry["graph_sha256"] == engine.manifest.files[PLAN_GRAPH]
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
    options = {"method": "rtn", "bits": 4, "calibration": 24} | how
    inputs = {"data": dataset, "model": model}
    small = quantize(QuantizeConfig(**options), inputs, place("quantized"))
    engine = export(config(), {"data": dataset, "model": small}, place("engine"))
    entry = json.loads((engine.path / "engine.json").read_text())["tensorrt"]
    assert entry["precision"] == "int4"
    kinds = [t.data_type for t in onnx.load(engine.path / PLAN_GRAPH).graph.initializer]
    assert onnx.TensorProto.INT4 in kinds
    assert (onnx.TensorProto.INT8 in kinds) == ("item_table" in how)


def graph_of(file: Path, *nodes: onnx.NodeProto, k: int) -> Path:
    """A graph from ``item_ids`` to ``out`` that no model has."""
    h = onnx.helper
    graph = h.make_graph(
        nodes,
        "graph",
        [h.make_tensor_value_info("item_ids", onnx.TensorProto.INT64, ["batch", "length"])],
        [h.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array([k]), "k")],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_messages_of_parser_and_build_are_in_the_error(tmp_path: Path) -> None:
    """With graphs that earlier checks refuse if they come from a model."""
    node, flavour, shapes = onnx.helper.make_node, FLAVOURS["tensorrt-rtx"], (Profile(1, 5000),)
    cast = node("Cast", ["item_ids"], ["x"], to=onnx.TensorProto.FLOAT)

    def build(*nodes: onnx.NodeProto, k: int = 5) -> bytes:
        graph = graph_of(tmp_path / "graph.onnx", cast, *nodes, k=k)
        return tensorrt.build(flavour, graph, shapes, 1024)

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
def test_the_doctor_reports_it() -> None:
    from slmc.commands import diagnosis as doctor

    findings = {one.what: one.found for one in doctor.examine()}
    assert ": can build plans" in findings["TensorRT (tensorrt-rtx)"]


class Full(SimpleNamespace):
    """The parts of full TensorRT that a build calls; it records the calls."""

    def __init__(self, version: str) -> None:
        calls: dict[str, Any] = {"shapes": [], "caches": []}

        class Logger:
            ERROR = 1

        class Cache(SimpleNamespace):
            def serialize(self) -> bytes:
                return self.known + b"more"

        class Settings:
            def add_optimization_profile(self, profile: Any) -> int:
                return len(calls["shapes"]) - 1

            def set_memory_pool_limit(self, pool: str, size: int) -> None:
                calls[pool] = size

            def clear_flag(self, flag: str) -> None:
                calls["cleared"] = flag

            def create_timing_cache(self, known: bytes) -> Cache | None:
                calls["caches"].append(known)
                return None if known == b"broken" else Cache(known=known)

            def set_timing_cache(self, kept: Cache, ignore_mismatch: bool) -> bool:
                return not ignore_mismatch

        class Builder:
            def __init__(self, logger: Logger) -> None: ...

            def create_network(self, flags: int) -> None:
                calls["flags"] = flags

            def create_builder_config(self) -> Settings:
                return Settings()

            def create_optimization_profile(self) -> Any:
                return SimpleNamespace(set_shape=lambda *shape: calls["shapes"].append(shape))

            def build_serialized_network(self, network: None, settings: Settings) -> bytes:
                return b"plan"

        super().__init__(
            __version__=version,
            calls=calls,
            ILogger=Logger,
            Builder=Builder,
            OnnxParser=lambda *_: SimpleNamespace(parse_from_file=lambda _: True),
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
            MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
            BuilderFlag=SimpleNamespace(TF32="tf32"),
        )


@pytest.mark.parametrize(("version", "flags"), [("10.13.3.9", 2), ("11.4.0.106", 0)])
def test_all_settings_reach_full_tensorrt(
    version: str, flags: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strongly typed in both majors, kernel times kept between builds of one GPU and version."""
    module: Any = Full(version)
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(flavours, "driver", lambda: Driver((9, 0)))
    monkeypatch.setattr(flavours, "module_for_building", lambda _: module)
    logger_of.cache_clear()
    shapes = profiles(config(flavour="tensorrt", batch=(1, 8)), HISTORY)

    def build() -> bytes:
        graph = tmp_path / "model.onnx"
        return tensorrt.build(FLAVOURS["tensorrt"], graph, shapes, memory_mb=3)

    kept = tmp_path / f"cache/tensorrt/tensorrt-{version}-sm9.0.timings"
    assert build() == b"plan" and kept.read_bytes() == b"more"
    assert build() == b"plan" and kept.read_bytes() == b"moremore"
    kept.write_bytes(b"broken")
    assert build() == b"plan" and kept.read_bytes() == b"more"
    assert [file.name for file in kept.parent.iterdir()] == [kept.name]
    calls = module.calls
    assert calls["caches"] == [b"", b"more", b"broken", b""]
    assert (calls["flags"], calls["cleared"], calls["workspace"]) == (flags, "tf32", 3 * 2**20)
    assert calls["shapes"][:2] == [
        ("item_ids", (1, 1), (1, HISTORY), (1, HISTORY)),
        ("item_ids", (1, 1), (8, HISTORY), (8, HISTORY)),
    ]
    logger_of.cache_clear()


@pytest.mark.parametrize(
    ("precision", "gpu", "lacking"),
    [
        ("bf16", (7, 5), "bf16 needs bf16 matmuls; compute capability 7.5 does not have them."),
        ("fp8", (8, 6), "fp8 needs 8-bit floats; compute capability 8.6 does not have them."),
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
    monkeypatch.setattr(flavours, "module_for_building", lambda _: Full("10.13"))
    loaded = load_model(model)
    for flavour in FLAVOURS.values():
        if flavour.runs_on(gpu):
            with pytest.raises(MissingError) as caught:
                settings = config(flavour=flavour.name, precision=precision)
                tensorrt.prepare_plan(settings, loaded, 10, {})
            assert str(caught.value) == f"tensorrt: {lacking}"
    half = tensorrt.prepare_plan(config(flavour="tensorrt", precision="fp16"), loaded, 10, {})
    assert half.precision == "fp16" and half.profiles == profiles(config(), HISTORY)
