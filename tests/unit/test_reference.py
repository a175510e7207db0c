"""The reference document is what its program would write now."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "ops/make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_tells_what_the_code_knows() -> None:
    assert (ROOT / "ops/reference.md").read_text(encoding="utf-8") == program().text(), "make docs"
