import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from worker.cli import render
from worker.jobs.states import AttemptState, BatchState, State
from worker.jobs.views import Attempt, Batch, Job

NOW = datetime(2026, 1, 31, 12, 0, 0, 987_000, tzinfo=UTC)
BATCH = Batch(
    id="batch_1",
    name="in [bold].jsonl",
    queue="bulk",
    priority=0,
    state=BatchState.COMPLETED,
    total=1_000,
    succeeded=990,
    failed=7,
    cancelled=0,
    expired=3,
    prompt_tokens=12_000,
    cached_tokens=1_024,
    completion_tokens=3_400,
    reasoning_tokens=500,
    redrives=0,
    created_at=NOW,
    in_progress_at=NOW,
    finished_at=NOW + timedelta(seconds=20),
)
ATTEMPT = Attempt(
    number=2,
    state=AttemptState.UNKNOWN,
    endpoint="https://example.com",
    prepared_at=NOW,
    answered_at=NOW,
    seconds=1.234,
    first_token_seconds=None,
    status=504,
    request_id=None,
    error_class="divert",
    error_code="gateway_timeout",
    error_message="too slow [red]",
    maybe_billed=True,
    prompt_tokens=None,
    completion_tokens=None,
)


def job(**changes: Any) -> Job:
    values: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    values |= {"id": "job_1", "line": 1, "custom_id": "a", "model": "m", "attempts": 1}
    values |= {"state": State.SUCCEEDED, "created_at": NOW, "tool_calls": (), **changes}
    return Job(**values)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is drawn where output and errors are a terminal."""
    screen = io.StringIO()
    for name in ("out", "err"):
        console = Console(
            file=screen, force_terminal=True, width=200, color_system="standard", highlight=False
        )
        monkeypatch.setattr(render, name, console)
    return screen


def test_piped_tables_are_lines_of_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    render.batches([BATCH, replace(BATCH, id="batch_2", state=BatchState.IN_PROGRESS)])
    printed = [text.split("\t") for text in capsys.readouterr().out.splitlines()]
    assert printed[0] == ["BATCH", "STATE", "DONE", "FAILED", "TOKENS", "CREATED", "NAME"]
    assert printed[1] == [
        *("batch_1", "completed", "1000/1000", "10", "15.4k"),
        *("2026-01-31T12:00:00Z", "in [bold].jsonl"),
    ]
    assert printed[2][:2] == ["batch_2", "in_progress"]


def test_a_terminal_gets_a_table_with_colours(terminal: io.StringIO) -> None:
    render.batches([BATCH])
    text = terminal.getvalue()
    assert "\t" not in text
    assert "\x1b[32mcompleted" in text
    assert "in [bold].jsonl" in text


def test_words_in_brackets_are_not_lost_on_a_terminal(terminal: io.StringIO) -> None:
    render.attempts([replace(ATTEMPT, error_message="expected [a, b] [/end]")])
    assert "expected [a, b] [/end]" in terminal.getvalue()


def test_jobs_show_their_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    render.jobs([job(finish_reason="stop"), job(state=State.FAILED, error_code="model_not_found")])
    rows = [text.split("\t") for text in capsys.readouterr().out.splitlines()]
    assert [row[5] for row in rows] == ["OUTCOME", "stop", "model_not_found"]


def test_attempts_show_where_how_long_and_whether_they_may_be_billed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    render.attempts([ATTEMPT, replace(ATTEMPT, seconds=None, status=None, maybe_billed=False)])
    rows = [text.split("\t") for text in capsys.readouterr().out.splitlines()]
    assert rows[1] == [
        *("2", "unknown", "https://example.com", "504", "1.23s", "2026-01-31T12:00:00Z"),
        *("gateway_timeout (maybe billed)", "too slow [red]"),
    ]
    assert rows[2][3:5] == ["", ""]
    assert rows[2][6] == "gateway_timeout"


def test_facts_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    render.pairs({"job": "job_1", "error": None, "content": "", "line": 0})
    assert capsys.readouterr().out == "job      job_1\nline     0\n"


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[red]no markup[/red] :smile: " + "long " * 100
    render.say(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_notes_warnings_and_errors_stay_out_of_the_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    render.note("a note")
    render.warn("mind this")
    render.fail("it broke")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "a note\nwarning: mind this\nit broke\n"


def test_json_is_one_line_with_its_letters_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_json({"name": "Zoë\n", "at": NOW})
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "Zoë" in printed
    assert json.loads(printed)["name"] == "Zoë\n"


def test_the_json_of_a_batch_has_its_fields_and_what_is_done() -> None:
    value = render.batch_json(BATCH)
    assert value["done"] == 1_000
    assert value["state"] == "completed"
    assert value["created_at"] == NOW.isoformat()
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        (BATCH, "990 succeeded, 10 failed, 5 waiting"),
        (replace(BATCH, failed=0, expired=0), "990 succeeded, 0 failed, 5 waiting"),
        (replace(BATCH, cancelled=2), "990 succeeded, 10 failed, 5 waiting, 2 cancelled"),
    ],
)
def test_a_summary_says_what_the_batch_came_to(
    batch: Batch, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {State.QUEUED: 2, State.RUNNING: 2, State.WAITING: 1, State.SUCCEEDED: 990}
    render.summary(batch, counts, 0)
    first, tokens, taken = capsys.readouterr().out.splitlines()
    assert first == line
    assert tokens == ("tokens: 12000 in, 1024 of them cached, 3400 out, 500 of them reasoning")
    assert taken.startswith("time: 20.0 s, ")


def test_a_summary_warns_of_unknown_outcomes(capsys: pytest.CaptureFixture[str]) -> None:
    render.summary(BATCH, {}, 4)
    assert "4 calls of unknown outcome: they may have been billed" in capsys.readouterr().err


def test_the_rate_of_a_finished_batch_is_over_the_time_it_took() -> None:
    assert render.seconds_taken(BATCH) == 20.0
    assert render.rate(BATCH) == 50.0
    assert render.rate(replace(BATCH, finished_at=NOW)) == 0.0


def test_a_piped_bar_is_a_line_for_each_news(capsys: pytest.CaptureFixture[str]) -> None:
    with render.progress_bar(1_000) as bar:
        assert not bar.is_live
        for text in ("1/3", "1/3", "2/3", "3/3"):
            bar.show(BATCH, text)
    printed = capsys.readouterr()
    assert printed.err == "1/3\n2/3\n3/3\n"
    assert printed.out == ""


def test_on_a_terminal_the_bar_is_drawn(terminal: io.StringIO) -> None:
    with render.progress_bar(1_000) as bar:
        assert bar.is_live
        bar.show(BATCH, "the last news")
    assert "1000/1000" in terminal.getvalue()
    assert "the last news" in terminal.getvalue()
