import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmc.artefact import Artefact
from slmc.export.runtime import pages
from slmc.export.runtime.engine import Engine

SIZE = 32 * pages.PAGE
LARGE = "AnonHugePages:"


def large() -> int:
    """Bytes of this process in large pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(LARGE))


def taken() -> mmap.mmap:
    """Memory of its own, written once, in small pages."""
    memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.write(b"\1" * SIZE)
    return memory


@pytest.mark.skipif(not pages.allowed(), reason="this system gives no large pages")
def test_what_the_block_takes_and_keeps_becomes_large() -> None:
    mine, before = taken(), large()
    with pages.large_pages():
        taken().close()
        theirs = taken()
    assert SIZE - 2 * pages.PAGE <= large() - before <= SIZE
    assert theirs[:] == mine[:] == b"\1" * SIZE


def test_where_they_are_switched_off_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packed: Artefact
) -> None:
    never, nowhere = tmp_path / "enabled", tmp_path / "none"
    never.write_text("always madvise [never]\n")
    monkeypatch.setattr(pages.ctypes, "CDLL", lambda _: pytest.fail("asked"))
    for place in (never, nowhere):
        monkeypatch.setattr(pages, "SWITCH", place)
        assert Engine.open(packed).top([])[0].shape == (0, 10)


RANGES = st.sets(st.integers(0, 30)).map(
    lambda found: {a: b for a, b in zip(sorted(found)[::2], sorted(found)[1::2], strict=False)}
)


@given(RANGES, RANGES)
def test_grown_ranges_hold_what_no_range_held(
    before: dict[int, int], after: dict[int, int]
) -> None:
    def bytes_of(ranges: dict[int, int]) -> set[int]:
        return {at for start, end in ranges.items() for at in range(start, end)}

    grown = list(pages.grown(before, after))
    assert all(start < end for start, end in grown)
    found = [at for start, end in grown for at in range(start, end)]
    assert len(found) == len(set(found))
    assert set(found) == bytes_of(after) - bytes_of(before)
