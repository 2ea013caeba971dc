import errno
import gzip
import hashlib
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import IO

import fsspec
import pytest

from slmc.artefact import sha256
from slmc.data import sources
from slmc.data.config import Columns, PrepareConfig, Titles
from slmc.data.prepare import fetch_log
from slmc.data.sources import fetch, fingerprint
from slmc.errors import DataError, MissingError

CONTENT = b"user_id:token\titem_id:token\n1\t2\n"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip finds without a network."""
    index = tmp_path / "index"
    index.mkdir()
    file = index / "toylog-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("toylog/data/toy.inter", CONTENT)
        archive.writestr("toylog/__init__.py", "raise RuntimeError('imported')")
        info = "toylog-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toylog\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return file


def toy(wheel: Path, member: str = "toylog/data/toy.inter", version: str = "1.0") -> str:
    return f"pypi://toylog=={version}/{member}#sha256={sha256(wheel)}"


def test_a_member_of_a_wheel_is_fetched_once(wheel: Path, cache: Path) -> None:
    source = toy(wheel)
    (path,) = fetch(source)
    assert path.read_bytes() == CONTENT and path.is_relative_to(cache)
    assert path.name == "toy.inter"
    wheel.unlink()
    assert fetch(source) == [path]  # from the cache: pip would find nothing any more
    (other,) = fetch(source.replace("data/toy.inter", "__init__.py"))  # nor for another member
    assert other.read_text().startswith("raise")


def test_a_full_disk_leaves_nothing_behind(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(packed: IO[bytes], unpacked: IO[bytes]) -> None:
        unpacked.write(packed.read(1))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(toy(wheel))
    assert not [file.name for file in cache.rglob("*partial*")]


def test_a_wheel_with_another_hash_is_not_opened(wheel: Path, cache: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(DataError) as caught:
        fetch(f"pypi://toylog==1.0/toylog/data/toy.inter#sha256={wrong}")
    assert caught.value.what == (
        f"toylog-1.0-py3-none-any.whl has SHA-256 {sha256(wheel)}, but the source expects {wrong}."
    )
    assert caught.value.remedy == (
        "Do not use the file; if you are sure that it is right, put its hash into the source."
    )
    assert not [path for path in cache.rglob("*") if path.suffix in (".whl", ".inter")]


def test_a_damaged_cached_wheel_is_fetched_again(wheel: Path, cache: Path) -> None:
    folder = cache / "downloads" / sha256(wheel)
    folder.mkdir(parents=True)
    (folder / wheel.name).write_bytes(b"cut short")
    assert fetch(toy(wheel))[0].read_bytes() == CONTENT


def test_offline(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingError) as caught:
        fetch(toy(wheel))
    assert caught.value.what == f"toylog==1.0 is not in {cache / 'downloads'}, and slmc is offline."
    assert caught.value.exit_code == 4
    monkeypatch.delenv("HF_HUB_OFFLINE")
    path = fetch(toy(wheel))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(toy(wheel)) == path


def test_the_last_line_of_pip_is_shown(wheel: Path) -> None:
    with pytest.raises(MissingError) as caught:
        fetch(toy(wheel, version="9"))
    assert caught.value.what == (
        "pip could not download toylog==9: ERROR: No matching distribution found for toylog==9"
    )


def test_an_interpreter_without_pip(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {os.path.realpath(sys.executable)} -I -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sources.sys, "executable", str(python))
    with pytest.raises(
        MissingError, match=r"pip could not download toylog==1\.0: .*No module named pip"
    ):
        fetch(toy(wheel))


def test_a_missing_member(wheel: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch(toy(wheel, member="toylog/toy.inter"))
    assert caught.value.what == "toylog-1.0-py3-none-any.whl contains no file toylog/toy.inter."
    assert caught.value.remedy == (
        "Name a member as `unzip -l` lists it, perhaps toylog/data/toy.inter."
    )


@pytest.mark.parametrize(
    "source",
    ["pypi://toylog/toy.inter", "pypi://toylog==1.0/toy.inter", "pypi://a==1/m#sha256=12",
     "pypi://--index-url==1/m#sha256=" + "0" * 64],
)  # fmt: skip
def test_a_source_that_is_incomplete(source: str) -> None:
    with pytest.raises(DataError) as caught:
        fetch(source)
    assert caught.value.what == f"{source} is not a pypi:// source."


@pytest.mark.parametrize("member", ["../x", "a/../../x", "/etc/passwd"])
def test_a_member_outside_the_wheel(member: str) -> None:
    with pytest.raises(DataError, match="names a file outside the wheel"):
        fetch(f"pypi://toylog==1.0/{member}#sha256={'0' * 64}")


def test_paths_and_globs(folder: Path) -> None:
    for name in ("b.csv", "a.csv", "deep/c.csv"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")
    assert fetch("a.csv") == [Path("a.csv")]
    assert fetch(f"file://{folder / 'a.csv'}") == [folder / "a.csv"]
    assert fetch("*.csv") == [Path("a.csv"), Path("b.csv")]
    assert fetch("**/*.csv") == [Path("a.csv"), Path("b.csv"), Path("deep/c.csv")]
    Path("odd[1].csv").write_text("x")
    assert fetch("odd[1].csv") == [Path("odd[1].csv")]  # a file of that name comes first


@pytest.mark.parametrize(
    ("source", "what", "remedy"),
    [
        ("rating.csv", "rating.csv does not exist.",
         "Check the path; a similar one is ratings.csv."),
        ("none/x.csv", "none/x.csv does not exist.", "Check the path."),
        (".", ". is a directory, not a log.", "Name its files, for instance *.csv."),
        ("*.pq", "No file matches *.pq.", "Check the pattern; it starts at {cwd}."),
        ("odd://x", "odd://x: the protocol odd:// is unknown.",
         "Name a path, or a URL that fsspec reads: https://, s3://, gs://, hf:// and others."),
        ("memory://none.csv", "There is no file at memory://none.csv.", "Check the URL."),
    ],
)  # fmt: skip
def test_missing_files(folder: Path, source: str, what: str, remedy: str) -> None:
    Path("ratings.csv").write_text("x")
    with pytest.raises(DataError) as caught:
        fetch(source)
    assert caught.value.what == what
    assert caught.value.remedy == remedy.format(cwd=folder)


def test_urls_are_downloaded_again_only_when_they_change(cache: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/logs/b.csv": b"b", "/logs/a.csv": b"a"})
    first = fetch("memory://logs/*.csv")
    assert [path.read_bytes() for path in first] == [b"a", b"b"]
    assert fetch("memory://logs/*.csv") == first and first[0].is_relative_to(cache)
    memory.pipe({"/logs/a.csv": b"changed"})
    assert [path.read_bytes() for path in fetch("memory://logs/*.csv")] == [b"changed", b"b"]


def test_urls_offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://example.org/log.csv"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingError) as caught:
        fetch(url)
    assert caught.value.what == f"{url} has not been downloaded, and slmc is offline."
    kept = cache / "downloads" / hashlib.sha256(url.encode()).hexdigest()
    for age, version in enumerate(("new", "old")):
        (kept / version).mkdir(parents=True)
        (kept / version / "log.csv").write_text(version)
        os.utime(kept / version, (1000 - age, 1000 - age))
    assert [path.read_text() for path in fetch(url)] == ["new"]


def test_the_fingerprint_is_of_the_content(folder: Path) -> None:
    for name, text in (("a.csv", "a"), ("b.csv", "b")):
        Path(name).write_text(text)
    one = fingerprint(PrepareConfig(source="a.csv"))
    assert one == {"source": hashlib.sha256(b"a").hexdigest(), "source_name": "a.csv"}
    both = PrepareConfig(source="*.csv", titles=Titles(source="a.csv"))
    before = fingerprint(both)
    assert before["titles"] == one["source"] and before["source"] != one["source"]
    Path("b.csv").write_text("c")
    assert fingerprint(both)["source"] != before["source"]


def test_numbers_in_names_count(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["part-1.csv", "part-2.csv", "part-10.csv", "x/2/1.csv", "x/10/1.csv", "y.csv"]
    for name in reversed(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("user_id,item_id\n1,2\n")
    assert fetch("**/*.csv") == [Path(name) for name in names]
    with caplog.at_level(logging.INFO, "slmc.data"):
        fetch_log(PrepareConfig(source="**/*.csv", columns=Columns(time=None)))
    assert caplog.messages[-1] == (
        "Without time stamps, rows are taken to be in time order; 6 files in this order: "
        "part-1.csv, part-2.csv, part-10.csv, x/2/1.csv, …, y.csv"
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("through", ["/dev/stdin", "/dev/fd/{}"])
def test_a_pipe_is_a_source(folder: Path, cache: Path, packed: bool, through: str) -> None:
    """``cat log.csv | slmc data prepare /dev/stdin`` and ``<(cat log.csv)``, read once."""
    log = b"user_id,item_id,timestamp\n" + b"".join(
        b"%d,%d,%d\n" % (user, item, item) for user in range(6) for item in range(6)
    )
    Path("log.csv").write_bytes(gzip.compress(log) if packed else log)
    reader, writer = os.pipe()
    os.write(writer, Path("log.csv").read_bytes())
    os.close(writer)
    source = through.format(reader)
    script = (
        "from slmc.data.sources import fingerprint\nfrom slmc.data.config import PrepareConfig\n"
        "from slmc.data.prepare import prepare\nfrom pathlib import Path\n"
        f"config = PrepareConfig(source={source!r})\nbefore = fingerprint(config)\n"
        "dataset = prepare(config, {}, Path('out'))\n"
        "assert dataset.manifest.metrics['fingerprint'] == {'source': before['source']}\n"
        "print(before['source'], dataset.manifest.metrics['rows'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdin=reader, pass_fds=[reader], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    os.close(reader)
    expected = hashlib.sha256(Path("log.csv").read_bytes()).hexdigest()
    assert (done.stdout, done.returncode) == (f"{expected} 36\n", 0), done.stderr
    assert not [*cache.glob("downloads/*")]
