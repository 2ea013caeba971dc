"""Seconds and peak memory of ``slmc data prepare``: ``python benchmarks/prepare.py``.

Logs of ``--rows`` generated rows (default 5,000,000), 20 per user, are written to a temporary
folder: integer ids, ids of 22 characters, every id in quotes, one quoted row, and gzip. Each is
prepared in a separate process; for comparison, ``pandas.read_csv`` reads it if pandas is installed.
Peak memory is that of the whole process (``getrusage``, largest resident set).
"""

import argparse
import gzip
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

USER_INTERACTIONS, ITEMS, CHUNK = 20, 100_000, 1_000_000
FORMS = {
    "integers": "{},{},{}\n", "22 characters": "user-{:017d},item-{:017d},{}\n",
    "quoted": '"{}","{}",{}\n',
}  # fmt: skip
PREPARE = "import sys; from slmc.commands.cli import main; sys.exit(main())"
PANDAS = "import sys, pandas; pandas.read_csv(sys.argv[1])"


def lines(form: str, rows: int) -> Iterator[str]:
    """Yield a log, CHUNK rows at once."""
    rng = np.random.default_rng(0)
    yield "user_id,item_id,timestamp\n"
    for start in range(0, rows, CHUNK):
        size = min(CHUNK, rows - start)
        users = rng.integers(0, max(rows // USER_INTERACTIONS, 2), size)
        items = (rng.pareto(1.1, size) * ITEMS / 200).astype(np.int64) % ITEMS
        times = rng.integers(1_600_000_000, 1_700_000_000, size)
        yield "".join(map(FORMS[form].format, users, items, times))


def write(folder: Path, rows: int) -> dict[str, Path]:
    """Write the logs; return them by name."""
    logs = {}
    for form in FORMS:
        logs[form] = folder / f"{form.replace(' ', '-')}.csv"
        with logs[form].open("w") as file:
            file.writelines(lines(form, rows))
    logs["one quoted row"] = folder / "one-quoted-row.csv"
    logs["one quoted row"].write_bytes(logs["integers"].read_bytes() + b'"7",8,1650000000\n')
    logs["gzip"] = folder / "integers.csv.gz"
    logs["gzip"].write_bytes(gzip.compress(logs["integers"].read_bytes(), 1))
    return logs


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
    parser.add_argument("--only", choices=[*FORMS, "one quoted row", "gzip"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["SLMC_CACHE"] = f"{name}/cache"
        for form, log in write(Path(name), args.rows).items():
            if args.only not in (None, form):
                continue
            out = ["-o", f"{name}/out-{log.stem}"]
            ours = measure([sys.executable, "-c", PREPARE, "data", "prepare", str(log), *out])
            print(f"{args.rows} rows, {form}: prepare {ours}", flush=True)
            if importlib.util.find_spec("pandas") is not None:
                print(f"    pandas.read_csv {measure([sys.executable, '-c', PANDAS, str(log)])}")
