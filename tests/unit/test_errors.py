import inspect
import pickle
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import errors
from worker.errors import ChatqueueError, Fault, Faults, InvalidRequestsError, SettingsError

TREE = {
    name: found
    for name, found in vars(errors).items()
    if inspect.isclass(found) and issubclass(found, Exception)
}


def test_the_tree_in_the_docstring_is_the_tree_of_the_code() -> None:
    assert errors.__doc__ is not None
    drawn = {}
    above: list[str] = []
    for row in errors.__doc__.splitlines():
        if found := re.match(r"^( {4}[│ ├└─]*)(\w+Error)\b", row):
            depth = (len(found[1]) - 4) // 4
            above[depth:] = [found[2]]
            drawn[found[2]] = above[depth - 1] if depth else "Exception"
    assert drawn == {name: one.__base__.__name__ for name, one in TREE.items() if one.__base__}


@pytest.mark.parametrize("error", TREE.values(), ids=TREE)
def test_every_error_is_ours_and_says_what_it_is_for(error: type[Exception]) -> None:
    assert issubclass(error, ChatqueueError)
    assert error.__doc__


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(3, "body.model", "is missing"), "line 3: body.model: is missing"),
        (Fault(3, "", "must be JSON"), "line 3: must be JSON"),
        (Fault(0, "model", "is missing"), "model: is missing"),
        (Fault(0, "", "must be JSON"), "must be JSON"),
    ],
)
def test_a_fault_names_its_place_as_far_as_there_is_one(fault: Fault, text: str) -> None:
    assert str(fault) == text


def test_refused_requests_list_every_fault_with_its_file() -> None:
    error = InvalidRequestsError([Fault(1, "a", "x"), Fault(2, "", "y")], "in.jsonl")
    assert str(error).splitlines() == ["in.jsonl: line 1: a: x", "in.jsonl: line 2: y"]
    assert len(error.faults) == 2


def test_a_refusal_survives_the_way_between_processes() -> None:
    error = InvalidRequestsError(Faults([Fault(1, "a", "x"), Fault(9, "a", "x")]), "in.jsonl")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert (str(again), list(again.faults)) == (str(error), list(error.faults))


@given(st.lists(st.builds(Fault, st.integers(0, 9), st.sampled_from("ab"), st.sampled_from("xy"))))
def test_faults_are_kept_as_they_came(faults: list[Fault]) -> None:
    kept = Faults(faults)
    assert list(kept) == faults
    assert kept[-1:] == faults[-1:]
    assert len(kept) == len(faults)


def test_a_million_faults_of_one_kind_are_kept_in_little_memory() -> None:
    tracemalloc.start()
    try:
        kept = Faults(Fault(line, "body", "is missing") for line in range(1_000_000))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 20_000_000
    assert kept[999_999] == Fault(999_999, "body", "is missing")


def test_wrong_settings_are_listed_all_at_once() -> None:
    error = SettingsError(["A: is wrong", "B: is missing"])
    assert (str(error), error.faults) == (
        "A: is wrong\nB: is missing",
        ("A: is wrong", "B: is missing"),
    )


def test_faults_survive_the_way_between_processes() -> None:
    fault = Fault(1, "a", "x")
    assert pickle.loads(pickle.dumps(fault)) == fault  # noqa: S301  # our own bytes
