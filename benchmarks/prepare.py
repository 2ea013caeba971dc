"""Seconds and peak memory of ``slmc data prepare``: ``python benchmarks/prepare.py``.

Logs of ``--rows`` generated rows (default 5,000,000), 20 per user, are written to ``--folder``
(default: a temporary one) and deleted: integer ids, ids of 22 characters, every id in quotes, one
quoted row, and gzip. Each is prepared in a separate process; for comparison, ``pandas.read_csv``
reads it if pandas is installed. Peak memory is that of the whole process (``getrusage``, largest
resident set).
"""

import argparse
import gzip
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

USER_INTERACTIONS, ITEMS, CHUNK = 20, 100_000, 1_000_000
FORMS = {
    "integers": ("{}", "{}"), "22 characters": ("user-{}", "item-{}"), "quoted": ('"{}"', '"{}"'),
}  # fmt: skip
ONE_QUOTED = "one quoted row"
PREPARE = "import sys; from slmc.commands.cli import main; sys.exit(main())"
PANDAS = "import sys, pandas; pandas.read_csv(sys.argv[1])"


def write(form: str, rows: int, file: Path) -> None:
    """Write a log, CHUNK rows at once."""
    rng = np.random.default_rng(0)
    templates = FORMS.get(form, FORMS["integers"])
    width = 17 if form == "22 characters" else 0
    with file.open("wb") as log:
        log.write(b"user_id,item_id,timestamp\n")
        for start in range(0, rows, CHUNK):
            size = min(CHUNK, rows - start)
            ids = {
                "user": rng.integers(0, max(rows // USER_INTERACTIONS, 2), size),
                "item": (rng.pareto(1.1, size) * ITEMS / 200).astype(np.int64) % ITEMS,
            }
            frame = pl.DataFrame(ids | {"time": rng.integers(1_600_000_000, 1_700_000_000, size)})
            frame.select(
                *(
                    pl.format(template, pl.col(name).cast(pl.String).str.zfill(width))
                    for name, template in zip(ids, templates, strict=True)
                ),
                "time",
            ).write_csv(log, include_header=False, quote_style="never")
        if form == ONE_QUOTED:
            log.write(b'"7",8,1650000000\n')


def packed(file: Path) -> Path:
    """Compress a file by gzip, in its place."""
    target = file.with_name(f"{file.name}.gz")
    with file.open("rb") as plain, gzip.open(target, "wb", compresslevel=1) as log:
        shutil.copyfileobj(plain, log)
    file.unlink()
    return target


def measure(command: list[str]) -> str:
    """Run a command; return wall-clock seconds, CPU seconds and peak memory."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    message = child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{message}")
    return (
        f"{time.perf_counter() - start:6.1f} s, {used.ru_utime + used.ru_stime:6.1f} s CPU, "
        f"{used.ru_maxrss / 1e6:5.2f} GB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--only", choices=[*FORMS, ONE_QUOTED, "gzip"])
    parser.add_argument("--folder", type=Path, help="where there is room for log and dataset")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        os.environ["SLMC_CACHE"] = f"{name}/cache"
        for form in [args.only] if args.only else [*FORMS, ONE_QUOTED, "gzip"]:
            log = Path(name) / "log.csv"
            write(form, args.rows, log)
            log = packed(log) if form == "gzip" else log
            size = log.stat().st_size / 1e9
            out = ["-o", f"{name}/out", "--force"]
            ours = measure([sys.executable, "-c", PREPARE, "data", "prepare", str(log), *out])
            print(f"{args.rows} rows, {form} ({size:.2f} GB): prepare {ours}", flush=True)
            if importlib.util.find_spec("pandas") is not None:
                print(f"    pandas.read_csv {measure([sys.executable, '-c', PANDAS, str(log)])}")
            log.unlink()
