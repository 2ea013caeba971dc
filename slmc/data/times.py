"""Read times of a log as exact integers, never through floats.

A time is a number (``1700001000``, ``1.7e9``, ``881250949.5``) or a date (ISO 8601 text, or a
date type of Parquet). The size of a number shows its unit: seconds, milliseconds, microseconds or
nanoseconds since 1970; below 10^8 (1973 in seconds) it has no unit, like sequence numbers and
ranks. Dates have no unit. :mod:`slmc.data.clock` puts all times of a log on the same scale.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from slmc.data.columns import inexact_from

log = logging.getLogger("slmc.data")

NUMBER = r"^[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?$"
DATE = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[Tt ](?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:[.,][0-9]+)?)?"
    r"(?: ?(?:[Zz]|UTC|GMT|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?))?)?$"
)
DIGITS = 18
"""Largest number of digits after the point; a number with more is malformed."""
WIDEST = 37
"""Largest number of digits in all: those that Int128 holds."""
DECIMAL_COMMA = r"^[+-]?[0-9]{5,},[0-9]+$"
"""A number with a decimal comma; after five digits, it cannot be a comma between thousands."""
SLASHES = r"^[0-9]{4}/[0-9]{2}/[0-9]{2}(?:[Tt ]|$)"
"""The beginning of a date with slashes; with the year last, the month cannot be known."""
COMPACT = {
    (190_000_000_000, 220_000_000_000): "%Y%m%d%H%M",
    (19_000_000_000_000, 22_000_000_000_000): "%Y%m%d%H%M%S",
}
"""Integers between two numbers are dates such as 202311142230 and 20231114223000: as milliseconds,
they are in 1976 and after 2570."""
LOST_DIGITS = r"^[+-]?[0-9](?:\.[0-9]{1,5})?[eE]\+0*(?:9|1[0-9])$"
"""A time as a spreadsheet or ``%g`` prints it, with six digits at most: 1.70000E+12."""
PIECE = 1 << 17
"""Rows whose texts are parsed at once."""
PARTS_OF_A_SECOND = {"ms": 3, "us": 6, "ns": 9}


@dataclass(frozen=True)
class Times:
    """The times of one file."""

    values: pl.Series
    """Int64, or Int128 where that is too short; null where the time cannot be read."""
    digits: int
    """The number 1 in the file (for dates: one second) is ``10**digits`` in these integers."""
    dates: pl.Series
    """Boolean: whether the time was a date, not a number."""


def parse(column: pl.Series) -> Times:
    """Read a column of texts, numbers of any type, dates or datetimes."""
    dtype = column.dtype
    if isinstance(dtype, pl.Datetime):
        return _without_trailing_zeros(
            column.to_physical(), PARTS_OF_A_SECOND[dtype.time_unit], dates=True
        )
    if dtype == pl.Date:
        return _without_trailing_zeros(column.to_physical().cast(pl.Int64) * 86400, 0, dates=True)
    if dtype.is_integer():
        values = narrowed(column.cast(pl.Int128)) if _wide(column) else column.cast(pl.Int64)
        values, are_dates = _compact_dates(values)
        return Times(values, 0, are_dates)
    if dtype.is_float():
        whole = (column == column.floor()) & (column.abs() < inexact_from(dtype))
        if bool(whole.all()):
            return _without_trailing_zeros(column.cast(pl.Int64))
    return _parse_texts(column.cast(pl.String))


def scaled(values: pl.Series, power: int) -> pl.Series:
    """Return the integers times ``10**power``, as Int64 if they fit, else as Int128."""
    if power == 0:
        return values
    wide = max(map(abs, bounds(values))) * 10**power >= 2**63
    integer = pl.Int128 if wide else pl.Int64
    factor = pl.lit(10**power, integer)
    return values.to_frame("time").select(pl.col("time").cast(integer) * factor).to_series()


def bounds(values: pl.Series) -> tuple[int, int]:
    """Return minimum and maximum of integers; zeros if there are none."""
    extremes = values.to_frame("time").select(least=pl.col("time").min(), most=pl.col("time").max())
    least, most = extremes.row(0)
    return int(least or 0), int(most or 0)


def narrowed(values: pl.Series) -> pl.Series:
    """Return Int128 values as Int64 if all of them fit."""
    short = values.cast(pl.Int64, strict=False)
    return short if short.null_count() == values.null_count() else values


def _wide(column: pl.Series) -> bool:
    """Return whether the type has integers of more than 63 bits."""
    return column.dtype in (pl.UInt64, pl.Int128, pl.UInt128)


def warn_if_inexact(column: pl.Series) -> bool:
    """Warn if floats are so large that different times may already have been rounded to one.

    Returns:
        Whether there are such times.
    """
    if not column.dtype.is_float():
        return False
    largest = inexact_from(column.dtype)
    inexact = bool((column.is_finite() & (column.abs() >= largest)).any())
    if inexact:
        log.warning(
            "%s holds %s above %d, where different times are rounded to the same number. "
            "Export this column as integers", column.name, column.dtype, largest,
        )  # fmt: skip
    return inexact


def _without_trailing_zeros(values: pl.Series, digits: int = 0, *, dates: bool = False) -> Times:
    """Drop digits after the point that are 0 in every time."""
    for step in (3, 1):
        while digits >= step and bool((values % 10**step == 0).all()):
            values, digits = values // 10**step, digits - step
    return Times(values, digits, pl.repeat(dates, values.len(), dtype=pl.Boolean, eager=True))


def _parse_texts(texts: pl.Series) -> Times:
    """Parse texts piece by piece, so that memory stays small."""
    pieces = [_parse_piece(texts.slice(start, PIECE)) for start in range(0, texts.len(), PIECE)]
    digits = max((piece.digits for piece in pieces), default=0)
    values = [scaled(piece.values, digits - piece.digits) for piece in pieces]
    if not pieces:
        return _without_trailing_zeros(pl.Series([], dtype=pl.Int64))
    return Times(concatenated(values), digits, pl.concat([piece.dates for piece in pieces]))


def concatenated(values: Sequence[pl.Series]) -> pl.Series:
    """Concatenate series of Int64 and Int128; the result is Int128 if any of them is."""
    wide = any(part.dtype == pl.Int128 for part in values)
    return pl.concat([part.cast(pl.Int128) if wide else part for part in values])


def _parse_piece(texts: pl.Series) -> Times:
    """Parse plain integers first, then numbers with a point or an exponent, then dates."""
    values, dates = _compact_dates(texts.cast(pl.Int64, strict=False))
    left = (values.is_null() & texts.is_not_null()).arg_true()
    if left.is_empty():
        return Times(values, 0, dates)
    text = pl.col("text")
    rest = pl.DataFrame({"at": left, "text": texts.gather(left)})
    rest = rest.filter(~pl.col("text").str.contains(LOST_DIGITS)).with_columns(
        pl.when(text.str.contains(DECIMAL_COMMA))
        .then(text.str.replace(",", ".", literal=True))
        .when(text.str.contains(SLASHES))
        .then(text.str.replace_all("/", "-", literal=True))
        .otherwise(text)
    )
    is_number = pl.col("text").str.contains(NUMBER)
    number = _number_parts(rest.filter(is_number))
    moment = _date_parts(rest.filter(~is_number))
    digits = max(-bounds(number["shift"])[0], bounds(moment["fraction"].str.len_bytes())[1], 0)
    parsed = pl.concat([_number_values(number, digits), _date_values(moment, digits)])
    whole, others = scaled(values, digits), narrowed(parsed["value"])
    if pl.Int128 in (whole.dtype, others.dtype):
        whole, others = whole.cast(pl.Int128), others.cast(pl.Int128)
    return Times(whole.scatter(parsed["at"], others), digits, dates.scatter(moment["at"], True))


def _compact_dates(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return integers with dates such as 20231114223000 as seconds, and which they are."""
    dates = pl.repeat(False, values.len(), dtype=pl.Boolean, eager=True)
    for bounds_, form in COMPACT.items():
        inside = values.is_between(*bounds_).fill_null(False)
        if inside.any():
            at = inside.arg_true()
            moments = values.gather(at).cast(pl.String).str.to_datetime(form, strict=False)
            seconds = moments.dt.epoch("s")
            at, seconds = at.filter(seconds.is_not_null()), seconds.drop_nulls()
            values, dates = values.scatter(at, seconds.cast(values.dtype)), dates.scatter(at, True)
    return values, dates


def _number_parts(rows: pl.DataFrame) -> pl.DataFrame:
    """Return ``sign``, ``digits`` and ``shift`` of numbers: each is digits * 10^shift.

    The digits are a text without zeros at its ends. Numbers with more than ``DIGITS`` digits after
    the point are left out.
    """
    text, mantissa, digits = pl.col("text").str, pl.col("mantissa").str, pl.col("digits").str
    point = mantissa.find(".", literal=True)
    decimals = mantissa.len_bytes().cast(pl.Int64) - 1 - point
    zeros = digits.len_bytes().cast(pl.Int64) - digits.strip_chars_end("0").str.len_bytes()
    parts = (
        rows.select("at", "text", pair=text.to_lowercase().str.splitn("e", 2))
        .select(
            "at",
            sign=pl.when(text.starts_with("-")).then(pl.lit("-")).otherwise(pl.lit("")),
            mantissa=pl.col("pair").struct[0].str.strip_chars_start("+-"),
            power=pl.col("pair").struct[1].cast(pl.Int64).fill_null(0),
        )
        .with_columns(
            digits=mantissa.replace(".", "", literal=True).str.strip_chars_start("0"),
            shift=pl.col("power") - decimals.fill_null(0),
        )
    )
    return parts.select(
        "at",
        "sign",
        digits.strip_chars_end("0"),
        pl.when(pl.col("digits") == "").then(0).otherwise(pl.col("shift") + zeros).alias("shift"),
    ).filter(pl.col("shift").is_between(-DIGITS, WIDEST))


def _number_values(number: pl.DataFrame, digits: int) -> pl.DataFrame:
    """Return ``at`` and ``value``, which is null if it is too large for Int128."""
    length = pl.col("digits").str.len_bytes().cast(pl.Int64) + pl.col("shift") + digits
    padded = pl.concat_str("sign", pl.col("digits").str.pad_end(length.clip(0), "0"))
    value = (
        pl.when(pl.col("digits") == "")
        .then(pl.lit(0, pl.Int128))
        .when(length <= WIDEST)
        .then(padded.cast(pl.Int128, strict=False))
    )
    return number.select("at", value=value)


def _date_parts(rows: pl.DataFrame) -> pl.DataFrame:
    """Return ``at``, ``second`` since 1970 and ``fraction`` (decimals, as text) of dates."""
    usual = pl.col("text").str.contains(DATE)
    text, tail = pl.col("text").str, pl.col("tail").str
    cut = rows.filter(usual).select(
        "at",
        "text",
        day=text.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).to_physical().cast(pl.Int64),
        minute=_number(11) * 60 + _number(14),
        second=pl.when(text.slice(16, 1) == ":").then(_number(17)).otherwise(0),
        tail=text.slice(pl.when(text.slice(16, 1) == ":").then(19).otherwise(16)),
    )
    cut = cut.with_columns(zone=tail.strip_chars_start(".,0123456789 "))
    zones = cut["zone"].unique()
    offsets = pl.Series([_offset(zone) for zone in zones], dtype=pl.Int64)
    cut = cut.join(pl.DataFrame({"zone": zones, "offset": offsets}), on="zone")
    fraction = tail.extract("^[.,]([0-9]+)").fill_null("").str.strip_chars_end("0")
    dates = cut.select(
        "at",
        "text",
        second=pl.col("day") * 86400 + pl.col("minute") * 60 + pl.col("second") - pl.col("offset"),
        fraction=fraction.str.slice(0, DIGITS),
    )
    known = pl.col("second").is_not_null()
    rare = pl.concat([rows.filter(~usual), dates.filter(~known).select("at", "text")])
    return pl.concat([dates.filter(known).drop("text"), _rare_dates(rare)])


def _number(start: int) -> pl.Expr:
    """Return the two-digit number at a position of a text; 0 if the text is shorter."""
    return pl.col("text").str.slice(start, 2).cast(pl.Int64, strict=False).fill_null(0)


def _offset(zone: str) -> int:
    """Return the offset from UTC in seconds of ``+01:00``, ``-0530``, ``+02``, ``Z`` or ""."""
    if zone[:1] not in ("+", "-"):
        return 0
    digits = zone[1:].replace(":", "")
    ahead = int(digits[:2]) * 3600 + int(digits[2:] or 0) * 60
    return -ahead if zone[0] == "-" else ahead


def _rare_dates(rows: pl.DataFrame) -> pl.DataFrame:
    """Parse rare ISO 8601 forms (weeks, hours alone, no dashes) one by one."""
    texts = rows["text"].unique().drop_nulls()
    moments = {text: moment for text in texts if (moment := _moment(text)) is not None}
    table = pl.DataFrame(
        [
            (text, (moment - EPOCH) // timedelta(seconds=1), f"{moment.microsecond:06}")
            for text, moment in moments.items()
        ],
        schema={"text": pl.String, "second": pl.Int64, "fraction": pl.String},
        orient="row",
    )
    dates = rows.select("at", "text").join(table, on="text")
    return dates.select("at", "second", pl.col("fraction").str.strip_chars_end("0"))


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _date_values(moment: pl.DataFrame, digits: int) -> pl.DataFrame:
    """Return ``at`` and ``value``: second and fraction as one integer."""
    fraction = pl.col("fraction").str.pad_end(digits, "0")
    fraction = pl.when(fraction == "").then(pl.lit("0")).otherwise(fraction)
    value = pl.col("second").cast(pl.Int128) * pl.lit(10**digits, pl.Int128)
    return moment.select("at", value=value + fraction.cast(pl.Int128))
