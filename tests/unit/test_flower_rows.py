from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.jobs.states import BatchState
from worker.jobs.views import Batch
from worker.telemetry.flower import (
    NAME,
    BatchRows,
    eta_text,
    held_text,
    row_text,
    short_count,
    short_duration,
)

NOW = datetime(2026, 1, 2, 3, 0, 0, tzinfo=UTC)


def batch(**fields: Any) -> Batch:
    values: dict[str, Any] = {
        "id": "batch_1", "name": "in.jsonl", "queue": "bulk", "priority": 0,
        "state": BatchState.IN_PROGRESS, "total": 100, "succeeded": 0, "failed": 0, "cancelled": 0,
        "expired": 0, "prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0,
        "reasoning_tokens": 0, "redrives": 0, "created_at": NOW - timedelta(seconds=70),
        "in_progress_at": NOW - timedelta(seconds=60), "finished_at": None,
    }  # fmt: skip
    return Batch(**values | fields)


class Heard:
    """The events as a dispatcher would get them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.rows = BatchRows(self.hear)

    def hear(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


def test_progress_is_a_started_task_with_text_in_its_result() -> None:
    heard = Heard()
    heard.rows.tell(batch(succeeded=25, prompt_tokens=1_500), is_first=False)
    assert heard.kinds == ["task-received", "task-started", "task-progress"]
    assert heard.events[-1][1]["result"].startswith("25/100 · 0 failed · 1.5k tokens · ETA ")


def test_every_event_names_the_batch_so_that_a_new_flower_shows_it() -> None:
    heard = Heard()
    heard.rows.tell(batch(), is_first=True)
    heard.rows.tell(batch(state=BatchState.COMPLETED, finished_at=NOW), is_first=False)
    for _, fields in heard.events:
        assert (fields["uuid"], fields["name"]) == ("batch_1", NAME)
        assert fields["args"] == "('in.jsonl', 100)"


def test_a_batch_that_runs_again_leads_out_of_its_end() -> None:
    heard = Heard()
    heard.rows.tell(batch(redrives=1), is_first=True)
    heard.rows.tell(batch(redrives=1), is_first=False)
    assert heard.kinds.count("task-retried") == 1
    assert heard.kinds[0] == "task-retried"


@pytest.mark.parametrize(
    ("fields", "last"),
    [
        ({"state": BatchState.COMPLETED, "succeeded": 100}, "task-succeeded"),
        ({"state": BatchState.COMPLETED, "succeeded": 99, "failed": 1}, "task-failed"),
        ({"state": BatchState.COMPLETED, "succeeded": 99, "expired": 1}, "task-failed"),
        ({"state": BatchState.CANCELLED, "cancelled": 100}, "task-revoked"),
        ({"state": BatchState.CANCELLED, "failed": 1, "cancelled": 99}, "task-revoked"),
    ],
)
def test_a_row_ends_as_its_batch_did(fields: dict[str, Any], last: str) -> None:
    heard = Heard()
    heard.rows.tell(batch(finished_at=NOW, **fields), is_first=False)
    assert heard.kinds[-1] == last


def test_the_end_tells_how_long_it_took() -> None:
    heard = Heard()
    heard.rows.tell(
        batch(state=BatchState.COMPLETED, succeeded=100, finished_at=NOW), is_first=False
    )
    assert heard.events[-1][1]["runtime"] == 60.0


def test_a_row_says_in_one_line_how_far_it_is() -> None:
    shown = batch(succeeded=20, failed=4, expired=1, cancelled=5, prompt_tokens=900)
    assert row_text(shown, NOW) == "30/100 · 5 failed · 5 cancelled · 900 tokens · ETA 2m20s"
    over = batch(state=BatchState.COMPLETED, succeeded=100, finished_at=NOW)
    assert row_text(over, NOW) == "100/100 · 0 failed · 0 tokens"


def test_without_a_finished_job_nobody_knows_the_end() -> None:
    assert eta_text(batch(), NOW) == "?"
    assert eta_text(batch(succeeded=1, in_progress_at=NOW), NOW) == "?"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (950, "950"), (12_345, "12.3k"), (4_500_000, "4.5M"), (7_000_000_000, "7.0G")],
)
def test_counts_are_short(count: int, text: str) -> None:
    assert short_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (190, "3m10s"), (7_500, "2h05m"), (3_600, "1h00m")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text


def test_a_row_says_what_holds_its_batch_in_the_place_of_an_end_that_nobody_knows() -> None:
    held = held_text(["insufficient_quota", "insufficient_quota"])
    assert held == "paused: insufficient_quota"
    assert held_text([]) == ""
    shown = batch(total=100, succeeded=20)
    assert row_text(shown, NOW, held) == "paused: insufficient_quota · 20/100 · 0 failed · 0 tokens"
    heard = Heard()
    heard.rows.tell(shown, is_first=False, held=held)
    kind, fields = heard.events[-1]
    assert (kind, fields["result"]) == ("task-progress", row_text(shown, NOW, held))
