"""The picture of ranking against cost."""

import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from slmc.report.tables import Row
from slmc.report.tradeoff import Point, frontier, picture


def row(step: str, size: float, value: float, p50: float | None, kind: str = "engine") -> Row:
    return Row(
        step=step,
        kind=kind,  # type: ignore[arg-type]
        parameters=1,
        size_mb=size,
        value=value,
        half=0.01,
        change=None,
        p50_ms=p50,
        p99_ms=None,
        per_s=None,
        gate="",
    )


def test_frontier_by_hand() -> None:
    points = [Point(name, cost, value, 0) for name, cost, value in (
        ("dear", 9, 0.5), ("best", 5, 0.6), ("cheap", 1, 0.2), ("worse", 2, 0.1), ("mid", 3, 0.4),
    )]  # fmt: skip
    assert [p.name for p in frontier(points)] == ["cheap", "mid", "best"]


@given(st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0, 1)), min_size=1, max_size=20))
def test_every_point_is_matched_by_one_of_the_frontier(pairs: list[tuple[float, float]]) -> None:
    points = [Point(str(i), cost, value, 0) for i, (cost, value) in enumerate(pairs)]
    best = frontier(points)
    assert all(any(b.cost <= p.cost and b.value >= p.value for b in best) for p in points)
    costs, values = [p.cost for p in best], [p.value for p in best]
    assert costs == sorted(set(costs)) and values == sorted(set(values))


def test_a_picture_names_every_engine_once_a_panel() -> None:
    rows = [row(f"e<{i}>", 2.0**i, 0.01 * i, 1.0 + i) for i in range(4)]
    rows.append(row("model", 100.0, 0.9, None, kind="model"))
    svg = picture(rows, "ndcg@10")
    assert svg is not None
    texts = [node.text for node in ET.fromstring(svg).iter() if node.tag.endswith("text")]
    assert all(texts.count(f"e<{i}>") == 2 for i in range(4)) and "model" not in texts


def test_too_few_engines_make_no_picture() -> None:
    assert picture([row("a", 1, 0.1, 1.0), row("b", 2, 0.2, 2.0)], "ndcg@10") is None
