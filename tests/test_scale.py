"""``docs/scale.md`` has the table of its script."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/scale.md"


@pytest.fixture
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks/scale.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_of_the_page_is_up_to_date(scale: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    page.write_text(PAGE.read_text().replace("core hours", "changed"))
    scale.main(["--write", str(page)])
    assert page.read_text() == PAGE.read_text()


def test_twice_the_users_take_twice_the_hours(
    scale: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = []
    for users in ("1e9", "2e9"):
        scale.main(["--users", users, "--items", "1e6"])
        row = next(line for line in capsys.readouterr().out.splitlines() if "`score`" in line)
        hours.append(int(row.split("|")[5].replace(",", "")))
    assert hours[1] == pytest.approx(2 * hours[0], abs=1)
