"""Quotes in CSV: fields over several lines, unmatched quotes, files larger than a block."""

import csv
import io
import random
from pathlib import Path

import pytest

from slmc.data import files
from slmc.data.config import Columns
from slmc.data.readers import Log, read
from slmc.errors import DataError

HEADER = "user_id,item_id,timestamp,note\n"


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged messages, without the one about the unit of times."""
    return [one for one in caplog.messages if "Times (" not in one]


def log_of(text: str, **columns: str | None) -> Log:
    Path("log.csv").write_text(text)
    return read([Path("log.csv")], columns=Columns(**columns))  # type: ignore[arg-type]


def rows(log: Log) -> list[tuple[object, ...]]:
    return log.frame.select("user", "item", "time").rows()


def plain(numbers: range) -> str:
    return "".join(f"{n % 7},{n},{1700000000 + n},x\n" for n in numbers)


def test_two_lone_quotes_far_apart(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = HEADER + plain(range(10)) + '1,5,1700000010,"24 inch\n' + plain(range(11, 40))
    log = log_of(text + '2,6,1700000040,27 inch"\n' + plain(range(41, 50)))
    assert log.rows == 50 and log.frame.height == 19
    assert log.malformed["line"].to_list() == [*range(12, 43)]
    assert log.malformed.row(0)[1:] == (
        12, "quotes", "inside a quoted field that opens in line 12",
    )  # fmt: skip
    assert messages(caplog) == [
        "log.csv: the quoted field from line 12 to line 42 contains whole rows, which are skipped; "
        "fix its quotes"
    ]


@pytest.mark.parametrize("apart", [1, 2, 5000])
@pytest.mark.parametrize("block", [1 << 14, 1 << 22])
def test_no_line_vanishes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, apart: int, block: int
) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", block)
    text = HEADER + plain(range(10)) + '1,5,1700000010,"24 inch\n' + plain(range(apart - 1))
    log = log_of(text + '2,6,1700000040,27 inch"\n' + plain(range(1000)))
    assert log.malformed["line"].to_list() == [*range(12, 13 + apart)]
    assert log.frame.height == 1010 and log.rows == 1011 + apart


def test_a_quote_that_breaks_off_loses_every_line_up_to_there(folder: Path) -> None:
    text = HEADER + '1,5,1700000010,"24 inch\n1,6,1700000011,x\n2,7,1700000012,"27, wide"\n'
    log = log_of(text + plain(range(3)))
    assert log.malformed["line"].to_list() == [2, 3, 4]
    assert log.frame.height == 3


def test_quotes_inside_a_field_are_text(folder: Path) -> None:
    log = log_of(
        HEADER + '24" a,b,1,x\n"24"" b",c,2,x\n',
    )
    assert rows(log) == [('24" a', "b", 1.0), ('24" b', "c", 2.0)]


def test_a_field_over_lines_is_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    review = "\n".join(["Good, but", "", "not very, as they say,", *"123456789"])
    log = log_of(HEADER + plain(range(2)) + f'1,5,1700000007,"{review}"\n' + plain(range(2)))
    assert log.malformed.height == 0 and log.frame.height == 5
    assert rows(log)[2] == ("1", "5", 1700000007)
    assert messages(caplog) == ["log.csv: a quoted field spans lines 4 to 15; is a quote missing?"]
    caplog.clear()
    log = log_of('item_id,user_id,timestamp\n"a\nb",c,1\nd,"e\n\nf",2\n')
    assert rows(log) == [("c", "a\nb", 1.0), ("e\n\nf", "d", 2.0)] and not messages(caplog)


def test_a_quote_left_open_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 14)
    text = HEADER + plain(range(10)) + '1,5,1700000010,"24 inch\n' + plain(range(9000))
    with pytest.raises(DataError, match=r"^log\.csv, line 12: a quoted field is never closed\.\n"):
        log_of(text)


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_any_block_size_reads_what_csv_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, separator: str
) -> None:
    rng = random.Random(0)
    texts = ["a", 'say "x"', f"b{separator} c", "two\nlines", "", "é", '"', " x ", '24" tv']
    expected = [[rng.choice(texts) + str(n), rng.choice(texts) + "i", n] for n in range(80)]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerow(["user_id", "item_id", "timestamp"])
    writer.writerows(expected)
    for block in (40, 1 << 22):
        monkeypatch.setattr(files, "BLOCK_BYTES", block)
        log = log_of(text.getvalue())
        assert log.malformed.height == 0
        assert rows(log) == [(u.strip(), i.strip(), float(t)) for u, i, t in expected]


@pytest.mark.parametrize("block", [5, 64, 1 << 22])
def test_lines_are_counted_over_blocks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", block)
    Path("log.csv").write_bytes(
        b'user_id,item_id,timestamp\r\na,b,1\r\n\r\n"a",b\r\na,\xff,1\r\n \r\na,b,2'
    )
    log = read([Path("log.csv")])
    assert rows(log) == [("a", "b", 1.0), ("a", "b", 2.0)]
    assert log.malformed.select("line", "reason").rows() == [
        (4, "2 fields, the header has 3"),
        (5, "not UTF-8: byte 0xff at column 3"),
    ]
