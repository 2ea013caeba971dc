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


def allocate() -> mmap.mmap:
    """New memory, written once, in small pages."""
    memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.write(b"\1" * SIZE)
    return memory


@pytest.mark.skipif(not pages.enabled(), reason="this system gives no large pages")
def test_memory_that_the_block_allocates_and_keeps_gets_large_pages() -> None:
    mine, before = allocate(), large()
    with pages.large_pages():
        allocate().close()
        theirs = allocate()
    assert SIZE - 2 * pages.PAGE <= large() - before <= SIZE
    assert theirs[:] == mine[:] == b"\1" * SIZE


def test_nothing_is_requested_if_large_pages_are_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packed: Artefact
) -> None:
    never, nowhere = tmp_path / "enabled", tmp_path / "none"
    never.write_text("always madvise [never]\n")
    monkeypatch.setattr(pages.ctypes, "CDLL", lambda _: pytest.fail("called"))
    for place in (never, nowhere):
        monkeypatch.setattr(pages, "SWITCH", place)
        assert Engine.open(packed).top([])[0].shape == (0, 10)


RANGES = st.sets(st.integers(0, 30)).map(
    lambda ends: {a: b for a, b in zip(sorted(ends)[::2], sorted(ends)[1::2], strict=False)}
)


@given(RANGES, RANGES)
def test_new_ranges_are_those_that_no_range_held(
    before: dict[int, int], after: dict[int, int]
) -> None:
    def bytes_of(ranges: dict[int, int]) -> set[int]:
        return {at for start, end in ranges.items() for at in range(start, end)}

    ranges = list(pages.new_ranges(before, after))
    assert all(start < end for start, end in ranges)
    addresses = [at for start, end in ranges for at in range(start, end)]
    assert len(addresses) == len(set(addresses))
    assert set(addresses) == bytes_of(after) - bytes_of(before)
