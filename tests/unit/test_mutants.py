"""The mutants of `make mutants` still fit the tree: each text is there, once, and its tests too."""

from typing import Any

import pytest

from tests.programs import ROOT, program

MUTANTS = program("ops/trials/mutants.py").MUTANTS


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
