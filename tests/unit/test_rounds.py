"""A thread that must go on: what fails in it costs one round."""

import threading

import pytest

from tests.conftest import wait_until
from worker.errors import DatabaseError
from worker.execution.outage import Outage
from worker.queue.rounds import Rounds
from worker.store.engine import RefusedError


@pytest.mark.parametrize("error", [DatabaseError("away"), RefusedError("no"), KeyError("ours")])
def test_a_round_that_fails_costs_that_round_only(error: Exception) -> None:
    made = threading.Semaphore(0)

    def make() -> None:
        made.release()
        raise error

    rounds = Rounds("test", make, Outage("database"))
    rounds.start()
    for _ in range(3):
        assert made.acquire(timeout=10)
        rounds.call()
    rounds.stop()
    wait_until(lambda: "test" not in {one.name for one in threading.enumerate()}, "it has ended")


def test_one_that_was_never_begun_makes_no_round() -> None:
    made: list[bool] = []
    Rounds("test", lambda: made.append(True), Outage("database")).stop()
    assert not made
