import asyncio
from collections.abc import Iterator

import pytest

from worker.execution.board import Board, Call
from worker.execution.routes import Assignment
from worker.gate.gate import Target
from worker.store.claims import Claimed
from worker.store.records import Record

TARGET = Target("https://first.example", "key", "gpt-5.1")


@pytest.fixture
def task() -> Iterator["asyncio.Task[Record | None]"]:
    """A task that nothing runs: the board only keeps it."""

    async def call() -> Record | None:
        return None

    loop = asyncio.new_event_loop()
    made = loop.create_task(call())
    yield made
    loop.run_until_complete(made)
    loop.close()


def assignment(fence: int) -> Assignment:
    claimed = Claimed(
        "job_a",
        fence,
        None,
        "lane",
        "{}",
        "gpt-5.1",
        multimodal=False,
        stream=False,
        attempts=fence,
        diverts=0,
    )
    return Assignment(claimed, TARGET, endpoints=1)


def test_a_job_claimed_again_while_its_old_call_still_runs_is_a_call_of_its_own(
    task: "asyncio.Task[Record | None]",
) -> None:
    board = Board()
    old, new = assignment(1), assignment(2)
    board.add(Call(old, 0.0, task))
    board.add(Call(new, 0.0, task))
    assert board.by_lane["lane"] == board.by_target[TARGET] == 2
    board.remove(old)
    assert [call.key for call in board.calls.values()] == [("job_a", 2)]
    board.remove(old)
    board.remove(new)
    assert not board.calls
    assert board.by_lane["lane"] == board.by_target[TARGET] == 0
