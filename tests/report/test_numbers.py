"""Numbers are written the same everywhere."""

import math

import pytest

from slmc.evaluation.bootstrap import Bounds
from slmc.report import numbers


def test_a_metric_with_half_of_its_interval() -> None:
    assert numbers.value(0.06621, 0.01497) == "0.0662 ±0.0150"
    assert numbers.value(0.5) == "0.5000"
    assert numbers.value(None) == numbers.value(math.nan) == "-"


def test_changes_carry_their_sign_and_interval() -> None:
    assert numbers.change(Bounds(-0.0123, -0.034, 0.009)) == "-1.2 % [-3.4, +0.9]"
    assert numbers.change(Bounds(0.002, -0.01, 0.0123), relative=False) == (
        "+0.0020 [-0.0100, +0.0123]"
    )
    assert numbers.change(None) == "-"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (numbers.parameters(35_123_456), "35.1 M"),
        (numbers.parameters(42_100), "42 k"),
        (numbers.megabytes(141.24), "141.2"),
        (numbers.milliseconds(4.2678), "4.27"),
        (numbers.milliseconds(1234.5), "1234"),
        (numbers.rate(1240.4), "1,240"),
        (numbers.rate(0.123), "0.12"),
        (numbers.count(943), "943"),
        (numbers.plain(True), "true"),
        (numbers.plain(100000), "100,000"),
        (numbers.plain({"by": "time"}), '{"by": "time"}'),
    ],
)
def test_other_numbers(written: str, text: str) -> None:
    assert written == text
