"""What many users and items cost: ``python benchmarks/scale.py --users 100e6 --items 10e6``.

Each stage has a unit cost, in seconds of one core, and the command that measured it. The script
multiplies and prints the table of ``docs/scale.md``: core hours, price, and memory of one machine.
Costs are taken to grow in proportion to the units; the page says where that was measured and where
not. ``--write FILE`` replaces the table between the two markers of that file.
"""

import argparse
from collections.abc import Callable
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
    core_s: float
    """Seconds of one core for a million units."""
    unit: str
    units: Callable[[Size], float]
    memory_gb: Callable[[Size], float]
    """Memory of one machine."""
    command: str

    def row(self, size: Size) -> str:
        """The stage's line of the table."""
        hours = self.core_s * self.units(size) / MILLION / HOUR
        cells = (
            self.name, f"{self.core_s:,.3g} s for a million {self.unit}", self.command,
            f"{self.units(size) / MILLION:,.0f} million", f"{hours:,.0f}",
            f"{hours * size.price:,.0f}", f"{self.memory_gb(size):,.1f} GB",
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"


PASSES_SASREC, PASSES_LLM = 20, 5
SCAN_S, SEARCH_S = 0.0, 0.0
"""Seconds of one core for scoring 10 million items for a history, in batches of 32: exact with the
table in 8 bits, and by the index of inverted lists."""
MEASURED_ITEMS = 10e6
DECODER_S = 0.0
"""Seconds of one core for the user vector of a history of Beauty's lengths, 4 layers, int8."""


def exact_s(size: Size) -> float:
    """Seconds of one core for a history, all items scored."""
    return DECODER_S + SCAN_S * size.items / MEASURED_ITEMS


STAGES = (
    Stage(
        "`data prepare`", 2.39, "interactions", lambda size: size.rows,
        lambda size: 2.36 * size.users / 5e6,
        "`prepare.py --rows 100000000 --only integers`",
    ),
    Stage(
        f"`sasrec`, {PASSES_SASREC} passes, sampled softmax", 0.57 / 3200 * MILLION, "targets",
        lambda size: PASSES_SASREC * size.targets, lambda size: 0.6 + 3 * size.table_gb,
        "`sampled_softmax.py --only 3`",
    ),
    Stage(
        f"`teach`, 4 layers, {PASSES_LLM} passes", 690, "targets",
        lambda size: PASSES_LLM * size.targets, lambda size: 1.1 + size.table_gb,
        "`slmc run custom` on Amazon Beauty",
    ),
    Stage(
        f"`distill`, 2 layers, {PASSES_LLM} passes", 785, "targets",
        lambda size: PASSES_LLM * size.targets, lambda size: 1.1 + size.table_gb,
        "the same",
    ),
)  # fmt: skip
