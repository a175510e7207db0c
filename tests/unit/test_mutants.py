"""The mutants of `make mutants` still fit the tree: each text is there, once, and its tests too."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "ops/trials/mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


MUTANTS = program().MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=[one.name for one in MUTANTS])
def test_a_mutant_still_applies_and_is_python(mutant: Any) -> None:
    text = mutant.text(ROOT)
    compile(text, mutant.path, "exec")
    assert text != (ROOT / mutant.path).read_text(encoding="utf-8")


@pytest.mark.parametrize("mutant", MUTANTS, ids=[one.name for one in MUTANTS])
def test_the_tests_that_must_notice_a_mutant_are_there(mutant: Any) -> None:
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / path).read_text(encoding="utf-8")
