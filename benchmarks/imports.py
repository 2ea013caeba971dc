"""The import graph of slmc: ``python benchmarks/imports.py``.

Prints how many modules there are, how many imports between them (an arrow is counted once, also
where it stands inside a function), and each cycle. ``--folders`` prints the arrows between folders.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINKED = ("distill", "compress", "export")
"""Folders of the top level that are linked into slmc/."""


def modules() -> dict[str, Path]:
    """Name -> file of every module of slmc."""
    files = [file for folder in ("slmc", *LINKED) for file in (ROOT / folder).rglob("*.py")]
    found = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[0] == "slmc" and parts[1] in LINKED:
            continue  # the same file behind a link
        name = ".".join(parts if parts[0] == "slmc" else ("slmc", *parts))
        found[name.removesuffix(".__init__")] = file
    return dict(sorted(found.items()))


def imports(file: Path) -> set[str]:
    """Modules and names that a file imports, within functions too, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def arrows(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module -> modules of slmc that it imports."""
    found = {}
    for name, file in files.items():
        named = imports(file) & files.keys()
        # `from slmc.a import b` imports slmc.a only for its sake where b is a module.
        packages = {other.rpartition(".")[0] for other in named}
        text = {other for other in named if other not in packages or _uses(file, other, files)}
        found[name] = text - {name}
    return found


def _uses(file: Path, package: str, files: Mapping[str, Path]) -> bool:
    """Whether a file imports something from a package that is no module of it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            return any(f"{package}.{alias.name}" not in files for alias in node.names)
    return False


def folder(module: str) -> str:
    """The part of slmc that a module belongs to: ``slmc.data.ids`` is of ``data``."""
    return module.split(".")[1] if "." in module else module


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another in a circle (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in index:
            visit(module)
    return found


def between_folders(graph: Mapping[str, set[str]]) -> Iterator[tuple[str, str, int]]:
    """From, to and number of the arrows between folders."""
    counted = Counter(
        (folder(module), folder(other))
        for module, others in graph.items()
        for other in others
        if folder(module) != folder(other)
    )
    yield from ((*pair, number) for pair, number in sorted(counted.items()))


def main() -> None:
    """Print the graph."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folders", action="store_true", help="print the arrows between folders")
    asked = parser.parse_args()
    graph = arrows(modules())
    if asked.folders:
        for one, other, number in between_folders(graph):
            print(f"{one:12} -> {other:12} {number}")
    groups = cycles(graph)
    print(f"{len(graph)} modules, {sum(map(len, graph.values()))} arrows, {len(groups)} cycles")
    for group in groups:
        print("  " + ", ".join(group))


if __name__ == "__main__":
    main()
