"""Weights in pages of 2 MB, so that reading them misses fewer entries of the processor's tables.

A decoder and a table of a million items are read from end to end for every answer. In pages of
4 kB a processor looks an address up, and stops fetching ahead, 512 times as often.
"""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PAGE = 1 << 21
"""Bytes of a large page on x86-64, and on arm64 with small pages of 4 kB."""
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
"""Of madvise(2): new pages may be large; those that are there become so now (Linux 6.1)."""
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPS = Path("/proc/self/maps")


@contextmanager
def large_pages() -> Iterator[None]:
    """What memory the block takes and keeps is in large pages afterwards, where it can be.

    Asked of Linux alone, and not where large pages are switched off. It is advice: what the kernel
    does not follow stays in small pages.
    """
    if not allowed():
        yield
        return
    before = _private()
    yield
    libc = ctypes.CDLL(None)
    for start, end in grown(before, _private()):
        start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        if start < end:
            for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


def allowed() -> bool:
    """Whether this system gives large pages to those who ask."""
    with suppress(OSError):
        return "[never]" not in SWITCH.read_text() and MAPS.exists()
    return False


def grown(before: Mapping[int, int], after: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Start and end of what ranges hold that none held before; both map starts to ends."""
    old = sorted(before.items())
    for start, end in after.items():
        for known, known_end in old:
            if known >= end:
                break
            if known_end > start:
                if known > start:
                    yield start, known
                start = known_end
        if start < end:
            yield start, end


def _private() -> dict[int, int]:
    """End of each range of memory that belongs to no file and may be written, by its start.

    Ranges that hold no large page are left out.
    """
    found = {}
    for line in MAPS.read_text().splitlines():
        addresses, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(address, 16) for address in addresses.split("-"))
            if end - start >= PAGE:
                found[start] = end
    return found
