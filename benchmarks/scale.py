"""What many users and items cost: ``python benchmarks/scale.py --users 100e6 --items 10e6``.

Each stage has a unit cost, in seconds of one core, and the command that measured it. The script
multiplies and prints the table of ``docs/scale.md``: core hours, price, and memory of one machine.
Costs are taken to grow in proportion to the units; the page says where that was measured and where
not. ``--write FILE`` replaces the table between the two markers of that file.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- table of benchmarks/scale.py -->\n", "<!-- end of the table -->"
MILLION, HOUR = 1e6, 3600
VECTOR_BYTES = 64 * 4
"""An item vector of 64 numbers in float32."""


@dataclass(frozen=True)
class Size:
    """What is to be handled."""

    users: float
    items: float
    interactions: float
    """Interactions of a user."""
    trained: float
    """Users whose histories are trained on."""
    price: float
    """Of a core for an hour."""

    @property
    def rows(self) -> float:
        """Interactions of the log."""
        return self.users * self.interactions

    @property
    def targets(self) -> float:
        """Targets of one pass over the training users: all but a user's first item."""
        return self.trained * (self.interactions - 1)

    @property
    def table_gb(self) -> float:
        """An item table in float32."""
        return self.items * VECTOR_BYTES / 1e9


@dataclass(frozen=True)
class Stage:
    """A stage with its unit cost."""

    name: str
    core_s: Callable[[Size], float]
    """Seconds of one core for a million units."""
    unit: str
    units: Callable[[Size], float]
    memory_gb: Callable[[Size], float]
    """Memory of one machine."""
    command: str

    def row(self, size: Size) -> str:
        """The stage's line of the table."""
        seconds = self.core_s(size)
        hours = seconds * self.units(size) / MILLION / HOUR
        digits = 0 if seconds > 10 else 2
        cells = (
            self.name, f"{seconds:,.{digits}f} s for a million {self.unit}", self.command,
            f"{self.units(size) / MILLION:,.0f} million", f"{hours:,.0f}",
            f"{hours * size.price:,.0f}", f"{self.memory_gb(size):,.1f} GB",
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"


PASSES_SASREC, PASSES_LLM = 20, 5
DECODER_S = 1 / 247
"""Seconds of one core for a history of Beauty's lengths: 4 layers in int8, 12,101 items."""
SCAN_S, SEARCH_S = 1.174 / 32 / 10, 0.545 / 32 / 10
"""Seconds of one core and a million items for the best of 10 million for one user vector, 32 at a
time: all scored with the table in 8 bits, and found by an index of inverted lists."""


def ranking(scan_s: float) -> Callable[[Size], float]:
    """Seconds of one core for a million histories; ``scan_s`` is for a million items."""
    return lambda size: MILLION * (DECODER_S + scan_s * size.items / MILLION)


STAGES = (
    Stage(
        "`data prepare`", lambda _: 2.39, "interactions", lambda size: size.rows,
        lambda size: 2.36 * size.users / 5e6, "`prepare.py --rows 100000000 --only integers`",
    ),
    Stage(
        f"`sasrec`, {PASSES_SASREC} passes, sampled softmax", lambda _: 0.57 / 3200 * MILLION,
        "targets", lambda size: PASSES_SASREC * size.targets,
        lambda size: 0.6 + 3 * size.table_gb, "`sampled_softmax.py --only 3`",
    ),
    Stage(
        f"`teach`, 4 layers, {PASSES_LLM} passes", lambda _: 690, "targets",
        lambda size: PASSES_LLM * size.targets, lambda size: 1.1 + size.table_gb,
        "`slmc run custom`, Amazon Beauty",
    ),
    Stage(
        f"`distill`, 2 layers, {PASSES_LLM} passes", lambda _: 785, "targets",
        lambda size: PASSES_LLM * size.targets, lambda size: 1.1 + size.table_gb, "the same",
    ),
    Stage(
        "`score`, all items", ranking(SCAN_S), "histories", lambda size: size.users,
        lambda size: 1 + 1.25 * size.table_gb, "`score.py --threads 1`, `index.py`",
    ),
    Stage(
        "user vectors, then an index", ranking(SEARCH_S), "histories", lambda size: size.users,
        lambda size: 1 + 1.05 * size.table_gb, "the same",
    ),
)  # fmt: skip


def table(size: Size) -> str:
    """The table of ``docs/scale.md``."""
    price = f"at {size.price:g} an hour"
    head = ("stage", "one core needs", "measured by", "here", "core hours", price, "memory")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(stage.row(size) for stage in STAGES)]) + "\n"


def replaced(page: str, rows: str) -> str:
    """A page with another table between the markers."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{rows}{END}{rest.partition(END)[2]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=float, default=100e6)
    parser.add_argument("--items", type=float, default=10e6)
    parser.add_argument("--interactions", type=float, default=20, help="of a user")
    parser.add_argument("--trained", type=float, default=5e6, help="users that are trained on")
    parser.add_argument("--price", type=float, default=0.05, help="of a core for an hour")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    given = parser.parse_args(arguments)
    size = Size(given.users, given.items, given.interactions, given.trained, given.price)
    if given.write is None:
        print(table(size), end="")
    else:
        page = given.write.read_text(encoding="utf-8")
        given.write.write_text(replaced(page, table(size)), encoding="utf-8")


if __name__ == "__main__":
    main()
