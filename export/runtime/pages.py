"""Put weights into memory pages of 2 MB, so that reading them causes fewer TLB misses.

Every answer reads all weights of the decoder and of the item table. With pages of 4 kB the
processor translates an address, and interrupts prefetching, 512 times as often.
"""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PAGE = 1 << 21
"""Bytes of a large page on x86-64, and on arm64 with small pages of 4 kB."""
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
"""Advice of madvise(2): use large pages for new memory; convert existing pages now (Linux 6.1)."""
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPS = Path("/proc/self/maps")


@contextmanager
def large_pages() -> Iterator[None]:
    """Request large pages for the memory that the block allocates and keeps.

    Only on Linux, and only if large pages are enabled. This is advice: the kernel can leave memory
    in small pages.
    """
    if not enabled():
        yield
        return
    before = _anonymous_ranges()
    yield
    libc = ctypes.CDLL(None)
    for start, end in new_ranges(before, _anonymous_ranges()):
        start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        if start < end:
            for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


def enabled() -> bool:
    """Return whether this system gives large pages on request."""
    with suppress(OSError):
        return "[never]" not in SWITCH.read_text() and MAPS.exists()
    return False


def new_ranges(before: Mapping[int, int], after: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Yield start and end of memory in ``after`` but not in ``before``; both map starts to ends."""
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


def _anonymous_ranges() -> dict[int, int]:
    """Writable memory without a file, as a map from the start of each range to its end.

    Ranges smaller than a large page are left out.
    """
    ranges = {}
    for line in MAPS.read_text().splitlines():
        addresses, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(address, 16) for address in addresses.split("-"))
            if end - start >= PAGE:
                ranges[start] = end
    return ranges
