import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from worker.jobs.states import TRANSITIONS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "worker").rglob("*.py"))
READS_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_environment_is_read_in_settings_only(path: Path) -> None:
    found = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _names_of_os(node)
        if name in READS_ENVIRONMENT
    }
    assert not found or path.relative_to(ROOT) == Path("worker/settings.py")


def _names_of_os(node: ast.AST) -> list[str]:
    match node:
        case ast.Attribute(value=ast.Name(id="os"), attr=name):
            return [name]
        case ast.ImportFrom(module="os", names=names):
            return [one.name for one in names]
        case _:
            return []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_drawing_of_the_states_is_the_table_of_the_code() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    (drawing,) = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, re.DOTALL)
    ways = re.findall(r"^\s*(\w+) --> (\w+)", drawing, re.MULTILINE)
    assert sorted(ways) == sorted(
        (start.value, end.value) for start, ends in TRANSITIONS.items() for end in ends
    )


def test_imports_run_downwards_only() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
