"""Whether two runs of a recipe gave the same bits: ``python benchmarks/same_results.py RUN RUN``.

For every step of both runs it compares the weights byte by byte, and each table of users or items
column by column; columns that only one of them has are left out. Exits 1 if anything differs.
Both runs need the same machine and number of threads.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import polars as pl


def artefacts(run: Path) -> dict[str, Path]:
    """Id of a step -> folder of its artefact."""
    links = [link for link in run.iterdir() if link.is_symlink()]
    return {link.name.partition("-")[2]: link.resolve() for link in links}


def compared(one: Path, other: Path) -> Iterator[tuple[str, bool]]:
    """Name of each file that is compared, and whether it is the same."""
    for file in sorted(one.rglob("*.safetensors")):
        name = file.relative_to(one)
        yield str(name), file.read_bytes() == (other / name).read_bytes()
    for file in sorted(one.rglob("*.parquet")):
        name = file.relative_to(one)
        left, right = pl.read_parquet(file), pl.read_parquet(other / name)
        columns = [column for column in left.columns if column in right.columns]
        yield str(name), left.select(columns).equals(right.select(columns))


def main() -> None:
    """Print each file and whether it is the same."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs=2, type=Path, help="folders of two runs")
    one, other = map(artefacts, parser.parse_args().runs)
    steps = sorted(one.keys() & other.keys())
    different = sorted(one.keys() ^ other.keys())
    for step in steps:
        for name, same in compared(one[step], other[step]):
            print(f"{step}/{name}: {'equal' if same else 'DIFFERENT'}")
            different += [f"{step}/{name}"] * (not same)
    raise SystemExit("different: " + ", ".join(different) if different else 0)


if __name__ == "__main__":
    main()
