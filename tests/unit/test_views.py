import json
from datetime import UTC, datetime
from typing import Any

import pytest

from worker.jobs.outcomes import ToolCall
from worker.jobs.states import TERMINAL, AttemptState, BatchState, State
from worker.jobs.views import Attempt, Batch, Job, as_json

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def fill(view: type[Any], **fields: Any) -> Any:
    """Make a view in which what is not given is None."""
    names = view.__dataclass_fields__
    return view(**{name: fields.get(name) for name in names} | fields)


def test_states_are_read_from_what_sql_stores() -> None:
    assert fill(Job, state="waiting", tool_calls=()).state is State.WAITING
    assert fill(Batch, state="cancelling").state is BatchState.CANCELLING
    assert fill(Attempt, state="unknown").state is AttemptState.UNKNOWN


@pytest.mark.parametrize("view", [Job, Batch, Attempt])
def test_a_state_that_nobody_knows_is_an_error(view: type[Any]) -> None:
    with pytest.raises(ValueError, match="asleep"):
        fill(view, state="asleep")


@pytest.mark.parametrize("state", State)
def test_a_job_is_finished_in_a_terminal_state(state: State) -> None:
    assert fill(Job, state=state, tool_calls=()).is_finished == (state in TERMINAL)


def test_a_batch_is_finished_when_it_is_completed_or_cancelled_or_expired() -> None:
    finished = {one for one in BatchState if fill(Batch, state=one).is_finished}
    assert finished == {BatchState.COMPLETED, BatchState.CANCELLED, BatchState.EXPIRED}


def test_done_counts_every_end() -> None:
    counts = {"succeeded": 1, "failed": 20, "cancelled": 300, "expired": 4000}
    assert fill(Batch, state="in_progress", **counts).done == 4321


def test_a_view_becomes_plain_json_values() -> None:
    call = ToolCall(0, "call_1", "look", "{}", arguments_valid=True)
    job = fill(Job, id="job_1", state="succeeded", created_at=NOW, tool_calls=(call,))
    plain = json.loads(json.dumps(as_json(job)))
    assert plain["created_at"] == "2026-01-02T03:04:05+00:00"
    assert plain["state"] == "succeeded"
    assert plain["tool_calls"][0]["name"] == "look"
    assert plain["content"] is None
    assert set(plain) == set(Job.__dataclass_fields__)
