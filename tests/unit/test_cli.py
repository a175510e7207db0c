import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer
from sqlalchemy import select
from typer.testing import CliRunner, Result

from tests.pictures import GIF, JPEG, PNG, WEBP, asking_about
from worker.cli import build, frame
from worker.cli.work import _errors_of, _image_url, _places, _question, _run_key, _Work
from worker.client import Client
from worker.errors import InvalidRequestsError
from worker.jobs.options import JobOptions
from worker.jobs.states import State
from worker.jobs.views import Attempt, Batch, Job
from worker.models import job as job_table
from worker.settings import Settings
from worker.store import pauses
from worker.store.pauses import Refusal

COMMANDS = (
    "pause",
    "settle",
    "prove",
    *("run", "submit", "ask", "results", "cancel", "retry", "resume", "status"),
    *(
        "jobs",
        "show",
        "up",
        "down",
        "worker",
        "flower",
        "migrate",
        "simulate",
        "check",
        "usage",
        "exporter",
    ),
    "purge",
)
BODY = {"model": "gpt-5.1", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command configures logging for its process; here that is everybody's."""
    root, ours = logging.getLogger(), logging.getLogger("worker")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    structlog.reset_defaults()


def chatqueue(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(build(), words, input=stdin, prog_name="chatqueue")


def printed(*words: str, stdin: str | None = None) -> str:
    done = chatqueue(*words, stdin=stdin)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*words: str) -> str:
    done = chatqueue(*words)
    assert done.exit_code == frame.BAD_USAGE, done.output
    assert isinstance(done.exception, SystemExit)
    return done.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "three.jsonl"
    path.write_text(f"{json.dumps(BODY)}\n" * 3)
    return path


@pytest.fixture
def batch_id(file: Path) -> str:
    """A batch that waits for a stack: there is none."""
    return printed("submit", str(file)).strip()


# --- options --------------------------------------------------------------------------------------


def test_the_commands_are_those_that_are_promised() -> None:
    group = typer.main.get_command(build())
    assert set(getattr(group, "commands", ())) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_its_options(name: str) -> None:
    text = printed(name, "--help")
    assert f"Usage: chatqueue {name}" in text
    assert len(text.splitlines()[2].strip()) > 10
    assert "--lifeline-fd" not in text
    assert "--ready-fd" not in text


@pytest.mark.parametrize(
    "name",
    [
        "run",
        "submit",
        "ask",
        "results",
        "cancel",
        "retry",
        "resume",
        "status",
        "jobs",
        "show",
        "check",
        "purge",
    ],
)
def test_what_a_program_may_read_can_be_had_as_json(name: str) -> None:
    assert "--json" in printed(name, "--help")


def test_the_version_is_printed() -> None:
    assert printed("--version").strip().count(".") == 2


def test_without_a_command_the_commands_are_listed() -> None:
    done = chatqueue()
    assert all(name in done.output for name in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ("paint",),
        ("run",),
        ("run", "f", "--nonsense"),
        ("submit", "f", "--priority", "high"),
        ("jobs", "--state", "lost"),
        ("jobs", "--limit", "0"),
        ("simulate", "--port", "70000"),
        ("simulate", "--fail-rate", "2"),
        ("ask",),
        ("submit", "f", "--reasks", "11"),
        ("run", "f", "--endpoint", "nowhere"),
        ("ask", "?", "--endpoint", "https://u:p@x"),
    ],
)
def test_bad_usage_ends_with_2_and_says_how_to_get_help(words: tuple[str, ...]) -> None:
    message = refused(*words)
    assert "Usage: chatqueue" in message
    assert "Traceback" not in message


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("status", "batch_unknown"),
        ("status", "job_unknown"),
        ("show", "job_unknown"),
        ("show", "batch_unknown"),
        ("jobs", "--batch", "batch_unknown"),
        ("results", "batch_unknown"),
        ("cancel", "batch_unknown"),
        ("cancel", "job_unknown"),
        ("cancel", "nonsense"),
        ("retry", "batch_unknown"),
    ],
)
def test_an_unknown_id_is_named_and_ends_with_2(words: tuple[str, ...]) -> None:
    assert words[-1] in refused(*words)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.jsonl")
    assert refused("submit", path) == f"{path}: there is no such file\n"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert str(tmp_path) in refused("submit", str(tmp_path))


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_a_request_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(text)
    assert "there is no request in it" in refused("submit", str(path))


def test_every_fault_of_a_file_is_told_with_its_line_and_nothing_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"model": "m"}\n{\n' + json.dumps({**BODY, "temperature": 3, "n": 0}) + "\n")
    message = refused("submit", str(path))
    assert [text.split(": ")[1] for text in message.splitlines()[:-1]] == [
        "line 1",
        "line 2",
        "line 3",
        "line 3",
    ]
    assert message.splitlines()[-1] == "4 faults; nothing was enqueued"
    status = json.loads(printed("status", "--json"))
    assert status["batches"] == []
    assert set(status["jobs"].values()) == {0}


@pytest.mark.parametrize("words", [("status",), ("migrate",), ("submit", "f"), ("run", "f")])
def test_all_bad_settings_are_told_at_once(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATQUEUE_MAX_IN_FLIGHT", "0")
    monkeypatch.setenv("CHATQUEUE_BROKER_URL", "ftp://user:hunter2@here")
    monkeypatch.setenv("CHATQUEUE_TEXT_ENDPOINTS", "here")
    message = refused(*words)
    for name in ("CHATQUEUE_MAX_IN_FLIGHT", "CHATQUEUE_BROKER_URL", "CHATQUEUE_TEXT_ENDPOINTS"):
        assert f"{name}: " in message
    assert "hunter2" not in message


def test_a_database_that_was_not_migrated_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATQUEUE_DATABASE_URL", f"sqlite:///{tmp_path / 'other.db'}")
    assert "chatqueue migrate" in refused("status")
    assert "went from schema none to" in printed("migrate")
    assert "already" in printed("migrate")
    assert printed("status").startswith("0 queued")


def test_a_worker_without_a_broker_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOLINK_API_KEY", "key")
    assert "CHATQUEUE_BROKER_URL" in refused("worker")
    assert "CHATQUEUE_BROKER_URL" in refused("flower")


def test_a_worker_without_a_key_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATQUEUE_BROKER_URL", "redis://127.0.0.1:1/0")
    printed("migrate")
    assert "EVOLINK_API_KEY" in refused("worker")


def test_a_simulator_with_an_unknown_fault_does_not_start() -> None:
    assert "'nonsense'" in refused("simulate", "--port", "0", "--faults", "500,nonsense")


def test_no_stack_is_nothing_to_stop() -> None:
    assert printed("down") == "no stack is up\n"


# --- what is printed ------------------------------------------------------------------------------


def test_a_submitted_file_is_a_batch_that_is_listed(batch_id: str) -> None:
    first, header, row = printed("status").splitlines()
    assert first.startswith("3 queued, 0 running, 0 waiting, 0 held, 0 succeeded")
    columns = ["BATCH", "STATE", "DONE", "FAILED", "TOKENS", "CREATED", "NAME"]
    assert header.split("\t") == columns
    shown = dict(zip(columns, row.split("\t"), strict=True))
    assert shown["BATCH"] == batch_id
    assert (shown["STATE"], shown["DONE"], shown["NAME"]) == ("in_progress", "0/3", "three.jsonl")


def _names(view: type[Any]) -> set[str]:
    return set(view.__dataclass_fields__)


def test_the_json_of_the_whole_status(batch_id: str) -> None:
    status = json.loads(printed("status", "--json"))
    assert status.keys() == {"jobs", "unknown_outcomes", "pauses", "halts", "batches"}
    assert status["jobs"].keys() == {str(state) for state in State}
    (batch,) = status["batches"]
    assert batch["id"] == batch_id
    assert batch.keys() == _names(Batch) | {"done"}


def test_a_pause_is_told_with_its_reason_until_somebody_resumes(batch_id: str) -> None:
    refusal = Refusal("f1a9", "insufficient_quota", "no credit left", "https://a.example", 60.0)
    with Client(Settings.load()) as client, client.database.write() as connection:
        pauses.begin(connection, refusal, "job_none", 1)
    for words in (["status"], ["status", batch_id], ["check"]):
        told = chatqueue(*words).output
        assert "insufficient_quota at https://a.example: no credit left" in told
        assert "chatqueue resume" in told
    (paused,) = json.loads(printed("status", "--json"))["pauses"]
    assert (paused["key"], paused["code"]) == ("f1a9", "insufficient_quota")
    assert printed("resume") == "1 pause ended\n"
    assert json.loads(printed("resume", "--json")) == {"resumed": 0}
    assert json.loads(printed("status", "--json"))["pauses"] == []


def test_the_json_of_one_batch(batch_id: str) -> None:
    batch = json.loads(printed("status", batch_id, "--json"))
    assert batch.keys() == _names(Batch) | {
        "done", "jobs", "unknown_outcomes", "failures", "pauses"
    }  # fmt: skip
    assert batch["jobs"]["queued"] == 3


def test_the_json_of_a_submitted_batch_and_of_its_jobs(file: Path) -> None:
    batch = json.loads(printed("submit", str(file), "--json"))
    assert (batch["total"], batch["state"]) == (3, "in_progress")
    jobs = json.loads(printed("jobs", "--batch", batch["id"], "--json"))
    assert [job["custom_id"] for job in jobs] == ["3", "2", "1"]
    assert jobs[0].keys() == _names(Job)
    job = json.loads(printed("show", jobs[0]["id"], "--json"))
    assert job.keys() == _names(Job) | {"calls"}
    assert job == json.loads(printed("status", jobs[0]["id"], "--json"))
    assert job["calls"] == []
    assert "error_code" in _names(Attempt)


def test_jobs_can_be_chosen_by_state(batch_id: str) -> None:
    assert len(json.loads(printed("jobs", "--json", "--state", "queued"))) == 3
    assert json.loads(printed("jobs", "--json", "--state", "failed")) == []
    assert len(printed("jobs", "--batch", batch_id, "--limit", "2").splitlines()) == 3


def test_a_file_from_stdin_is_taken_too() -> None:
    batch_id = printed("submit", "-", stdin=json.dumps(BODY)).strip()
    assert json.loads(printed("status", batch_id, "--json"))["name"] == "stdin"


def test_the_same_key_is_the_same_batch(file: Path) -> None:
    first = printed("submit", str(file), "--key", "once")
    assert printed("submit", str(file), "--key", "once") == first
    assert printed("submit", str(file), "--key", "twice") != first


def test_results_of_a_batch_without_an_answer_are_an_empty_file(
    batch_id: str, tmp_path: Path
) -> None:
    done = chatqueue("results", batch_id, "-o", "out.jsonl")
    assert done.exit_code == 0
    assert done.stderr == "not complete yet: 0 of 3\n"
    assert (tmp_path / "out.jsonl").read_text() == ""
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_cancelled_jobs_make_the_exit_status_1_and_lines_of_the_errors_file(
    batch_id: str, tmp_path: Path
) -> None:
    assert printed("cancel", batch_id) == "3 jobs cancelled\n"
    assert json.loads(printed("cancel", batch_id, "--json")) == {"id": batch_id, "cancelled": 0}
    done = chatqueue("results", batch_id, "-o", "out.jsonl", "--json")
    assert done.exit_code == frame.JOBS_FAILED
    told = json.loads(done.stdout)
    assert (told["results"], told["errors"]) == ("out.jsonl", "out.errors.jsonl")
    lines = [json.loads(text) for text in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert [one["custom_id"] for one in lines] == ["1", "2", "3"]
    assert {one["error"]["code"] for one in lines} == {"batch_cancelled"}


def test_one_job_is_cancelled_in_the_singular() -> None:
    with Client() as client:
        job = client.submit(BODY)
    assert printed("cancel", job.id) == "1 job cancelled\n"
    assert printed("show", job.id).splitlines()[0].split() == ["job", job.id]


def test_retrying_where_nothing_failed_runs_nothing(batch_id: str) -> None:
    assert printed("retry", batch_id) == "0 jobs back in the queue\n"
    assert json.loads(printed("retry", batch_id, "--json")) == {"id": batch_id, "retried": 0}


def test_check_lists_errors_before_warnings_before_what_is_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHATQUEUE_BROKER_URL", "redis://127.0.0.1:1/0")
    done = chatqueue("check", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == frame.BAD_USAGE
    assert [one["level"] for one in found][:1] == ["error"]
    assert [one["what"] for one in found if one["level"] == "error"] == ["broker"]
    order = ["error", "warning", "ok"]
    assert [one["level"] for one in found] == sorted(
        (one["level"] for one in found), key=order.index
    )


def test_check_is_content_with_nothing_set_and_says_what_that_means() -> None:
    text = printed("check")
    assert "warning  key: EVOLINK_API_KEY is not set: the simulator will answer" in text
    assert "warning  broker: none is set" in text
    assert "ok       settings: valid" in text


def test_check_names_every_bad_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATQUEUE_WORKERS", "many")
    monkeypatch.setenv("CHATQUEUE_LEASE_SECONDS", "1")
    done = chatqueue("check")
    assert done.exit_code == frame.BAD_USAGE
    assert "error    settings: CHATQUEUE_WORKERS: " in done.stdout
    assert "error    settings: CHATQUEUE_LEASE_SECONDS: " in done.stdout


# --- pieces ---------------------------------------------------------------------------------------


def test_a_question_becomes_a_request() -> None:
    assert _question("Why?", "gpt-5.1", None, [], None) == {
        "model": "gpt-5.1",
        "messages": [{"role": "user", "content": "Why?"}],
    }
    full = _question("Why?", "m", "Be brief.", ["https://example.com/a.png"], 10)
    assert full["max_tokens"] == 10
    assert full["messages"][0] == {"role": "system", "content": "Be brief."}
    assert full["messages"][1]["content"] == [
        {"type": "text", "text": "Why?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    ]


@pytest.mark.parametrize(
    ("content", "kind"), [(PNG, "png"), (JPEG, "jpeg"), (WEBP, "webp"), (GIF, "gif")]
)
def test_an_images_file_becomes_a_data_url_whatever_its_name(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    data = base64.b64encode(content).decode()
    assert _image_url(str(tmp_path / "a.txt")) == f"data:image/{kind};base64,{data}"


@pytest.mark.parametrize("url", ["https://example.com/a", "data:image/png;base64,AAAA"])
def test_an_images_url_stays_as_it_is(url: str) -> None:
    assert _image_url(url) == url


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is empty"), (b"a text", "is no png, jpeg, webp or gif")]
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InvalidRequestsError, match=f"image: a.png {words}"):
        _image_url("a.png")


def test_a_missing_image_is_named() -> None:
    assert refused("ask", "What?", "--image", "gone.png") == "gone.png: there is no such file\n"


@pytest.mark.parametrize(
    ("file", "out", "errors", "places"),
    [
        ("a/in.jsonl", None, None, ("in.results.jsonl", "in.errors.jsonl")),
        ("-", None, None, ("stdin.results.jsonl", "stdin.errors.jsonl")),
        ("in.jsonl", "b/out.jsonl", None, ("b/out.jsonl", "b/out.errors.jsonl")),
        ("in.jsonl", None, "e.jsonl", ("in.results.jsonl", "e.jsonl")),
        ("in.jsonl", "o.jsonl", "e.jsonl", ("o.jsonl", "e.jsonl")),
    ],
)
def test_where_a_run_writes(
    file: str, out: str | None, errors: str | None, places: tuple[str, str]
) -> None:
    given = [None if one is None else Path(one) for one in (out, errors)]
    assert _places(Path(file), *given) == tuple(map(Path, places))


def test_the_errors_are_beside_the_results() -> None:
    assert _errors_of(Path("x/out.jsonl")) == Path("x/out.errors.jsonl")


def key_of(file: Path, settings: Settings, images: Path | None = None, **options: Any) -> str:
    return _run_key(_Work(file, 0, JobOptions(**options), images), settings)


def test_a_run_is_known_by_its_content_and_by_who_answers(file: Path, tmp_path: Path) -> None:
    settings = Settings(api_key="key")
    same = tmp_path / "same.jsonl"
    same.write_bytes(file.read_bytes())
    other = tmp_path / "other.jsonl"
    other.write_bytes(file.read_bytes() + b"\n")
    key = key_of(file, settings)
    assert key_of(same, settings) == key
    assert key_of(other, settings) != key
    elsewhere = Settings(api_key="key", text_endpoints="http://127.0.0.1:1")
    assert key_of(file, elsewhere) != key
    simulated = Settings()
    assert key_of(file, simulated) == key_of(same, simulated) != key


def test_a_run_is_known_by_its_options(file: Path) -> None:
    first, second = "https://first.example", "https://second.example"
    found = [
        key_of(file, Settings(), **options)
        for options in (
            {},
            {"reasks": 1},
            {"reasks": 2},
            {"endpoints": (first, second)},
            {"endpoints": (second, first)},
            {"endpoints": (first,)},
        )
    ]
    assert len(set(found)) == len(found)


def test_a_changed_image_makes_a_new_run(file: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(PNG)
    key = key_of(file, Settings(), pictures)
    assert key != key_of(file, Settings())
    (pictures / "results.jsonl").write_text("{}")
    assert key_of(file, Settings(), pictures) == key
    (pictures / "a.png").write_bytes(PNG + b"more")
    assert key_of(file, Settings(), pictures) != key


# --- images and options ---------------------------------------------------------------------------


def test_a_path_of_an_image_is_taken_with_its_folder_only(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(PNG)
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(asking_about("a.png")))
    message = refused("submit", str(file))
    assert "line 1: messages.0.content.1.image_url.url: must be an https:// URL" in message
    assert "--images DIR" in message
    for place in (tmp_path / "pics", Path("pics")):
        assert printed("submit", str(file), "--images", str(place)).startswith("batch_")
    assert '"a.png" does not exist' in refused("submit", str(file), "--images", str(tmp_path))
    gone = str(tmp_path / "gone")
    assert refused("submit", str(file), "--images", gone) == f"{gone}: there is no such file\n"
    line = json.dumps(asking_about("a.png"))
    assert printed("submit", "-", "--images", "pics", stdin=line).startswith("batch_")


def test_options_are_taken_from_the_command_line(file: Path) -> None:
    url = "http://127.0.0.1:1/"
    printed("submit", str(file), "--reasks", "3", "--endpoint", url, "--endpoint", url)
    with Client() as client, client.database.read() as connection:
        assert set(connection.scalars(select(job_table.c.reasks))) == {3}


def test_a_bad_endpoint_is_told_with_its_reason(file: Path) -> None:
    assert "is not an http(s) URL" in refused("submit", str(file), "--endpoint", "ftp://x")


# --- purging --------------------------------------------------------------------------------------


def test_a_purge_tells_what_it_removed_and_what_becomes_of_the_file(batch_id: str) -> None:
    printed("cancel", batch_id)
    assert printed("purge", "--older-than", "1d").startswith("removed: 0 batches, 0 jobs\n")
    done = chatqueue("purge", "--older-than", "0s")
    assert done.stdout == (
        "removed: 1 batch, 3 jobs\nremoved: 0 calls of the ledger, 0 images, 0 rows of workers\n"
    )
    assert done.stderr == "the database's file keeps its size; the space is used again\n"
    assert refused("status", batch_id) == f"there is no batch '{batch_id}'\n"
    assert json.loads(printed("purge", "--older-than", "0s", "--json")) == {
        "batches": 0,
        "jobs": 0,
        "calls": 0,
        "images": 0,
        "workers": 0,
    }


@pytest.mark.parametrize("text", ["", "30", "-1d", "a month"])
def test_an_age_that_cannot_be_read_is_refused_with_its_form(text: str) -> None:
    done = chatqueue("purge", "--older-than", text)
    assert done.exit_code == frame.BAD_USAGE
    assert "a whole number and a unit" in " ".join(done.stderr.split())


def test_contents_that_were_purged_are_said_to_be_gone(batch_id: str) -> None:
    printed("cancel", batch_id)
    told = printed("purge", "--older-than", "0s", "--content-only")
    assert told.startswith("emptied: 1 batch, 3 jobs\n")
    (first, *_) = json.loads(printed("jobs", "--batch", batch_id, "--json"))
    assert first["is_emptied"]
    assert "removed by 'chatqueue purge'" in printed("show", first["id"])


def test_a_run_whose_answers_were_purged_says_so_and_writes_nothing(
    file: Path, tmp_path: Path
) -> None:
    with Client() as client:
        key = key_of(file, client.settings)
        submitted = client.submit_file(file, key=key)
        client.cancel(submitted.batch_id)
    printed("purge", "--older-than", "0s", "--content-only")
    words = refused("run", str(file))
    assert submitted.batch_id in words
    assert "--fresh runs it again" in words
    assert not list(tmp_path.glob("*.results.jsonl"))
