"""The trial that kills workers finds what it looks for: each kind of breach, made up, is told."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from tests.programs import program

ANSWERED = {"state": "answered", "error_code": None, "maybe_billed": False}
UNKNOWN = {"state": "unknown", "error_code": "worker_lost", "maybe_billed": True}


KILL = program("ops/trials/kill.py")


def upstream() -> Any:
    """Two jobs, each asked once and answered."""
    requests = [KILL.Request(n, f"marker-{n:06}", f"job-{n}", answered=True) for n in range(2)]
    return SimpleNamespace(requests=requests, strange=[], broken_off=0)


def books(api: Any) -> Any:
    """What the product says where all is well."""
    bodies = [KILL._completion("gpt-5.1", one) for one in api.requests]
    lines = [{"custom_id": f"c-{n}", "response": {"body": body}} for n, body in enumerate(bodies)]
    tokens = sum(body["usage"]["completion_tokens"] for body in bodies)
    status = {"succeeded": 2, "total": 2, "completion_tokens": tokens, "unknown_outcomes": 0}
    everything = {"batches": [status], "unknown_outcomes": 0}
    return KILL.Books(status, everything, lines, {"c-0": "job_0", "c-1": "job_1"})


def test_books_that_are_right_are_no_breach() -> None:
    api = upstream()
    assert list(KILL.breaches(books(api), api, 2)) == []


def _lose(found: Any, _: Any) -> None:
    found.lines.pop()


def _double(found: Any, _: Any) -> None:
    found.lines.append(found.lines[0])


def _swap(found: Any, _: Any) -> None:
    first, second = found.lines
    first["response"], second["response"] = second["response"], first["response"]


def _miscount(found: Any, _: Any) -> None:
    found.status["completion_tokens"] += 1


def _submit_twice(found: Any, _: Any) -> None:
    found.everything["batches"] *= 2


def _change_key(_: Any, api: Any) -> None:
    api.requests.append(KILL.Request(2, "marker-000000", "job-another"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_lose, "lost: c-1"),
        (_double, "in the results 2 times: c-0"),
        (_swap, "has an answer that it was not sent"),
        (_miscount, "tokens, its results"),
        (_submit_twice, "one file became 2 batches"),
        (_change_key, "was sent under"),
    ],
)
def test_a_breach_is_told(spoil: Any, told: str) -> None:
    api = upstream()
    found = books(api)
    spoil(found, api)
    assert told in "\n".join(KILL.breaches(found, api, 2))


@pytest.mark.parametrize(
    ("calls", "received", "answered", "told"),
    [
        ([ANSWERED], 2, 1, "the ledger does not have"),
        ([ANSWERED, ANSWERED | {"error_code": "500"}], 2, 2, "the ledger does not show"),
        ([ANSWERED | {"state": "sent"}, ANSWERED], 2, 1, "left open"),
        ([UNKNOWN | {"maybe_billed": False}, ANSWERED], 2, 2, "not maybe billed"),
        ([UNKNOWN, ANSWERED], 2, 2, ""),
        ([ANSWERED, ANSWERED], 2, 2, ""),
    ],
)
def test_a_ledger_that_leaves_something_out_is_told(
    calls: list[dict[str, Any]], received: int, answered: int, told: str
) -> None:
    numbered = [call | {"number": n} for n, call in enumerate(calls)]
    found = "\n".join(KILL._faults_of("marker-000000", numbered, received, answered))
    assert told in found
    assert bool(told) == bool(found)


def test_calls_made_twice_that_no_strike_explains_are_told() -> None:
    api = upstream()
    api.requests += [KILL.Request(2 + n, "marker-000000", "job-0", answered=True) for n in range(3)]
    ledger = [ANSWERED | {"number": n} for n in range(4)]
    product = SimpleNamespace(json=lambda *_: {"calls": ledger})
    strikes = KILL.Strikes(1, Counter(), 1, 2)
    twice, wrong = KILL.unmarked(product, books(api), api, strikes, KILL.random.Random(0))
    assert twice == 3
    assert wrong[0] == "3 calls made twice, the strikes explain 2"


def test_unknown_outcomes_that_nothing_explains_are_told() -> None:
    api, found = upstream(), books(upstream())
    api.broken_off = 1
    found.status["unknown_outcomes"] = 4
    product = SimpleNamespace(json=lambda *_: {"calls": [ANSWERED | {"number": 0}]})
    strikes = KILL.Strikes(1, Counter(), 1, 2)
    _, wrong = KILL.unmarked(product, found, api, strikes, KILL.random.Random(0))
    assert wrong[0] == "4 calls of unknown outcome, of which 3 are explained"
