"""The repository in a real Triton Inference Server, and its configs in Triton's parser."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slmc.artefact import Artefact
from slmc.export.config import ExportConfig, TritonConfig
from slmc.export.export import export
from slmc.export.runtime.engine import Engine, read_description
from slmc.export.triton import repository as triton
from slmc.recommend import recommend

Place = Callable[[str], Path]
SERVER = "nvidia-pytriton==0.7.0"
"""A wheel with tritonserver 2.51 and its Python backend, which needs numpy 1."""
STARTS_S = 60.0
CLIENT = """
import json, sys, threading
import numpy as np
import tritonclient.grpc as grpc

port, requests = int(sys.argv[1]), json.load(sys.stdin)
answers = [None] * len(requests)


def send(indices):
    client = grpc.InferenceServerClient(f"localhost:{port}")
    for index in indices:
        ids, exclude_seen = requests[index]
        rows = np.array([[item.encode() for item in ids]], dtype=object)
        inputs = [grpc.InferInput("history", rows.shape, "BYTES")]
        inputs[0].set_data_from_numpy(rows)
        if exclude_seen:
            inputs.append(grpc.InferInput("exclude_seen", (1, 1), "BOOL"))
            inputs[1].set_data_from_numpy(np.array([[True]]))
        answer = client.infer("recommender", inputs)
        items, scores = answer.as_numpy("items")[0], answer.as_numpy("scores")[0]
        answers[index] = [[item.decode() for item in items], scores.tolist()]


threads = [threading.Thread(target=send, args=[range(n, len(requests), 8)]) for n in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
statistics = grpc.InferenceServerClient(f"localhost:{port}").get_inference_statistics("recommender")
joined = [entry.batch_size for entry in statistics.model_stats[0].batch_stats]
print(json.dumps({"answers": answers, "joined": joined}))
"""
PARSE = """
import sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

for file in sys.argv[1:]:
    parsed = text_format.Parse(open(file).read(), model_config_pb2.ModelConfig())
    print(parsed.name, parsed.max_batch_size, len(parsed.model_warmup))
"""


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip {arguments[0]}: {(done.stderr.strip().splitlines() or [''])[-1]}")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with Triton's client, which has another version of protobuf than the tests."""
    site = tmp_path_factory.mktemp("client")
    pip("install", "--target", site, "tritonclient[grpc]>=2.50")
    return os.environ | {"PYTHONPATH": str(site)}


@pytest.fixture(scope="module")
def engine(dataset: Artefact, model: Artefact, place: Place) -> Artefact:
    config = ExportConfig(top_k=10, formats=("triton",), triton=TritonConfig(instances=2))
    return export(config, {"data": dataset, "model": model}, place("engine"))


@pytest.mark.slow
def test_triton_reads_every_config(
    engine: Artefact, client: dict[str, str], tmp_path: Path
) -> None:
    files = sorted((engine.path / "triton").glob("*/config.pbtxt"))
    shapes = [{"batch": batch, "length": 12} for batch in (1, 16)]
    entry = {"profiles": shapes, "version": "10.13", "compute_capability": "9.0"}
    files.append(tmp_path / "config.pbtxt")
    files[-1].write_text(triton.plan_config(entry, read_description(engine.path), TritonConfig()))
    done = subprocess.run(
        [sys.executable, "-c", PARSE, *files], env=client, capture_output=True, text=True
    )
    expected = ["recommender 64 2", "recommender_onnx 64 2", "recommender_tensorrt 16 2"]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.fixture(scope="module")
def server(engine: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The gRPC port of a tritonserver that serves the Python variant."""
    folder = tmp_path_factory.mktemp("server")
    pip("download", "--no-deps", "-d", folder, SERVER)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    home = folder / "pytriton/tritonserver"
    backend = home / "backends/python"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"{SERVER} has no backend for Python {version}")
    shutil.copy(stub, backend)
    for file in (backend / stub.name, home / "bin/tritonserver"):
        file.chmod(0o755)
    # The backend's folder is on its search path, whatever PYTHONPATH says.
    pip("install", "--target", backend, "numpy<2", "onnxruntime")
    repository = folder / "repository"
    shutil.copytree(engine.path / "triton/recommender", repository / "recommender")
    ports = [_free_port() for _ in range(2)]
    command = [
        home / "bin/tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={home / 'backends'}",
        f"--http-port={ports[0]}",
        f"--grpc-port={ports[1]}",
        "--allow-metrics=false",
    ]
    log = (folder / "log").open("w+")
    running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_plain())
    try:
        _wait(running, ports[0], folder / "log")
        yield ports[1]
    finally:
        running.terminate()
        running.wait(timeout=60)
        log.close()


def _plain() -> dict[str, str]:
    """The environment without an active virtual one, whose numpy 2 the server would import."""
    here = str(Path(sys.executable).parent)
    parts = os.environ["PATH"].split(os.pathsep)
    return os.environ | {"PATH": os.pathsep.join(part for part in parts if part != here)}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])


def _wait(running: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + STARTS_S
    while time.monotonic() < until and running.poll() is None:
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/v2/health/ready"):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])


@pytest.mark.slow
def test_concurrent_clients_get_the_engines_answers(
    server: int, engine: Artefact, client: dict[str, str]
) -> None:
    histories = [[f"film-{1 + (7 * n + k) % 30}" for k in range(1 + n % 20)] for n in range(160)]
    requests = [[one, n % 4 == 0] for n, one in enumerate(histories)]
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(server)],
        input=json.dumps(requests),
        env=client,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    running = Engine.open(engine, threads=1)
    for (ids, exclude_seen), (items, scores) in zip(requests, report["answers"], strict=True):
        expected = recommend(running, ids, 10, exclude_seen=exclude_seen)
        assert items[: len(expected)] == [one.item for one in expected]
        assert scores[: len(expected)] == pytest.approx([e.score for e in expected], abs=1e-4)
    # The warm-up has batches of 1 and 64; other batches are joined requests of clients.
    assert any(1 < size < 64 for size in report["joined"])
