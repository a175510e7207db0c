"""Each command beside a stack that is up."""

import base64
import json
import os
import pty
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import wait_until
from tests.e2e.conftest import KEY, PROGRAM, Shell, line, lines_of, question
from worker.client import Client
from worker.settings import Settings
from worker.simulator import SimulatorThread

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYPhfDwAChAGAZ4HQBgAAAABJRU5ErkJggg=="
)


def finish(shell: Shell, batch_id: str) -> None:
    settings = Settings(home=shell.folder / "home", api_key=KEY)
    with Client(settings) as client:
        client.wait_batch(batch_id, 60)


def refused(shell: Shell, *words: str | Path, stdin: str = "") -> str:
    """Run a command that must be refused; return its message."""
    done = shell.run(*words, stdin=stdin)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_submitted_batch_can_be_watched_and_fetched(stack: Shell) -> None:
    file = stack.write("fine.jsonl", [line(f"id-{n}", question(f"fine {n}")) for n in range(12)])
    batch_id = stack.ok("submit", file).strip()
    assert re.fullmatch(r"batch_\w+", batch_id)
    finish(stack, batch_id)

    status = stack.json("status", batch_id)
    assert (status["state"], status["done"], status["total"]) == ("completed", 12, 12)
    assert status["jobs"]["succeeded"] == 12
    assert "12 succeeded, 0 failed, 0 waiting" in stack.ok("status", batch_id)

    stack.ok("results", batch_id, "-o", "fine.out.jsonl")
    found = lines_of(stack.folder / "fine.out.jsonl")
    assert [one["custom_id"] for one in found] == [f"id-{n}" for n in range(12)]
    printed = stack.ok("results", batch_id, "-o", "-")
    assert [json.loads(text) for text in printed.splitlines()] == found

    jobs = stack.json("jobs", "--batch", batch_id, "--limit", "3")
    assert [job["custom_id"] for job in jobs] == ["id-11", "id-10", "id-9"]
    shown = stack.ok("show", jobs[0]["id"])
    assert "id-11" in shown
    assert jobs[0]["content"].split("\n")[0] in shown


def test_a_run_with_failures_writes_them_apart_and_they_can_be_retried(
    stack: Shell, simulator: SimulatorThread
) -> None:
    bodies = {
        "good": question("good one"),
        "refused": question("refused", "400_context_length,ok"),
        "html": question("too large", "413,ok"),
        "thinking": question("thinks", model="gpt-5.1-thinking"),
    }
    file = stack.write("mixed.jsonl", [line(name, body) for name, body in bodies.items()])
    done = stack.run("run", file, "-o", "mixed.out.jsonl", "--errors", "mixed.bad.jsonl")
    assert done.returncode == 1, done.stderr
    assert "2 succeeded, 2 failed, 0 waiting" in done.stdout
    assert "errors: mixed.bad.jsonl" in done.stdout

    good = lines_of(stack.folder / "mixed.out.jsonl")
    assert [one["custom_id"] for one in good] == ["good", "thinking"]
    bad = {one["custom_id"]: one for one in lines_of(stack.folder / "mixed.bad.jsonl")}
    assert {name: one["response"]["status_code"] for name, one in bad.items()} == {
        "refused": 400,
        "html": 413,
    }
    for one in bad.values():
        assert one["error"] is None
        assert one["response"]["body"]["error"]["message"]

    match = re.search(r"chatqueue retry (batch_\w+)", done.stderr)
    assert match is not None
    batch_id = match[1]
    assert stack.json("retry", batch_id) == {"id": batch_id, "retried": 2}
    finish(stack, batch_id)
    calls = simulator.summary().calls
    again = stack.run("run", file, "-o", "mixed.out.jsonl", "--errors", "mixed.bad.jsonl")
    assert again.returncode == 0, again.stderr
    assert "this file was run before" in again.stderr
    assert simulator.summary().calls == calls
    assert len(lines_of(stack.folder / "mixed.out.jsonl")) == 4
    assert not (stack.folder / "mixed.bad.jsonl").exists()


def test_a_cancelled_batch_keeps_its_answers_and_says_what_never_ran(stack: Shell) -> None:
    bodies = [question("quick"), *(question(f"slow {n}", "latency=60") for n in range(3))]
    batch_id = stack.ok("submit", stack.write("slow.jsonl", bodies)).strip()
    settings = Settings(home=stack.folder / "home", api_key=KEY)
    with Client(settings) as client:
        wait_until(lambda: client.batch(batch_id).done == 1, "the quick one is done")
    partial = stack.run("results", batch_id, "-o", "slow.out.jsonl")
    assert partial.returncode == 0
    assert "not complete yet: 1 of 4" in partial.stderr
    assert len(lines_of(stack.folder / "slow.out.jsonl")) == 1

    assert stack.ok("cancel", batch_id) == "3 jobs cancelled\n"
    assert stack.json("status", batch_id)["state"] == "cancelled"
    complete = stack.run("results", batch_id, "-o", "slow.out.jsonl")
    assert complete.returncode == 1
    never = lines_of(stack.folder / "slow.out.errors.jsonl")
    assert [(one["response"], one["error"]["code"]) for one in never] == [
        (None, "batch_cancelled")
    ] * 3


def test_one_question_is_asked_and_answered(stack: Shell, simulator: SimulatorThread) -> None:
    before = simulator.summary().calls
    answer = stack.ok("ask", "What is a queue?", "--system", "Be brief.")
    assert answer.strip()
    assert "job_" not in answer
    assert simulator.summary().calls == before + 1


def test_a_question_can_come_from_stdin_and_its_answer_as_json(stack: Shell) -> None:
    done = stack.run("ask", "-", "--model", "gpt-5.1-thinking", "--json", stdin="Why is it so?")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["state"], job["model"]) == ("succeeded", "gpt-5.1-thinking")
    assert job["reasoning_content"]


def test_a_question_can_have_an_image(stack: Shell) -> None:
    (stack.folder / "dot.png").write_bytes(PNG)
    assert stack.ok("ask", "What is this?", "--image", "dot.png").strip()


def test_a_broken_file_is_refused_with_every_fault_and_nothing_is_enqueued(stack: Shell) -> None:
    texts = [json.dumps(line(f"id-{n}", question(f"broken {n}"))) for n in range(1, 13)]
    texts[2] = '{"custom_id": "id-3", "body": {'
    texts[6] = json.dumps(line("id-7", {"model": "gpt-5.1"}))
    texts[8] = json.dumps(line("id-1", question("twice")))
    texts[10] = json.dumps(line("id-11", question("hot", temperature=3)))
    (stack.folder / "broken.jsonl").write_text("\n".join(texts) + "\n")
    before = stack.json("status")["jobs"]
    for command in ("submit", "run"):
        message = refused(stack, command, "broken.jsonl")
        faults = re.findall(r"^broken\.jsonl: line (\d+): (.*)$", message, re.MULTILINE)
        assert [int(number) for number, _ in faults] == [3, 7, 9, 11]
        assert "JSON" in faults[0][1]
        assert "messages" in faults[1][1]
        assert "custom_id" in faults[2][1]
        assert "line 1" in faults[2][1]
        assert "temperature" in faults[3][1]
        assert "nothing was enqueued" in message
    assert stack.json("status")["jobs"] == before


def test_requests_can_come_from_stdin_as_bare_bodies(stack: Shell) -> None:
    text = "".join(json.dumps(question(f"bare {n}")) + "\n\n" for n in range(3))
    done = stack.run("run", "-", "-o", "-", stdin=text)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(one) for one in done.stdout.splitlines() if one.startswith("{")]
    assert [one["custom_id"] for one in answers] == ["1", "3", "5"]


def test_what_cannot_be_done_is_said_without_a_traceback(stack: Shell) -> None:
    assert "there is no batch 'batch_0'" in refused(stack, "results", "batch_0", "-o", "x")
    assert not (stack.folder / "x").exists()
    assert "there is no such file" in refused(stack, "run", "nowhere.jsonl")
    (stack.folder / "empty.jsonl").write_text("\n \n")
    assert "there is no request in it" in refused(stack, "run", "empty.jsonl")


def test_the_key_and_the_questions_are_in_no_file_but_the_database(stack: Shell) -> None:
    secret = "a-secret-question-51aa"
    stack.ok("ask", secret)
    logs = list((stack.folder / "home" / "logs").iterdir())
    assert any("worker" in path.name for path in logs)
    files = [*logs, stack.folder / "home" / "stack.json", stack.folder / "up.log"]
    for path in files:
        assert KEY not in path.read_text()
        assert secret not in path.read_text()
    assert not _found_in(stack.folder / "home" / "broker", secret, KEY)


def _found_in(folder: Path, *words: str) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(w.encode() in path.read_bytes() for w in words)]


def test_check_finds_all_well_where_all_is(stack: Shell) -> None:
    found = stack.json("check")
    assert {one["what"] for one in found} >= {"settings", "key", "database", "broker"}
    assert {one["level"] for one in found} == {"ok"}


def test_on_a_terminal_the_status_has_colours(stack: Shell) -> None:
    batch_id = stack.ok("submit", stack.write("tty.jsonl", [question("terminal")])).strip()
    finish(stack, batch_id)
    assert "\x1b[32mcompleted" in _on_a_terminal(stack, "status", batch_id)
    assert "\x1b[" not in stack.ok("status", batch_id)


def _on_a_terminal(shell: Shell, *words: str) -> str:
    """Run a command on a terminal of its own; return what that shows."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *words],
        env=shell.environment | {"TERM": "xterm-256color", "COLUMNS": "200"},
        cwd=shell.folder,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # how Linux tells that the other side is closed
        while part := os.read(screen, 4096):
            shown += part
    os.close(screen)
    assert process.wait(10) == 0, shown
    return shown.decode()


def test_the_stack_comes_up_and_goes_down(shell: Shell) -> None:
    up = shell.start("up", "--no-flower", "--workers", "1")
    simulator = "simulator: http://127.0.0.1:"  # it is told last
    wait_until(lambda: simulator in shell.log("up") or up.poll(), "the stack is up", 60)
    assert up.poll() is None, shell.log("up")
    checked: list[dict[str, Any]] = shell.json("check")
    assert {one["what"]: one["level"] for one in checked if one["what"] in {"broker", "key"}} == {
        "broker": "ok",
        "key": "warning",
    }
    assert "already run by another process" in refused(shell, "up")
    assert shell.ok("down") == "stopped\n"
    assert up.wait(30) == 0
    assert shell.ok("down") == "no stack is up\n"


def test_the_simulator_serves_until_it_is_stopped(shell: Shell) -> None:
    process = shell.start("simulate", "--port", "0", "--latency", "0", "--faults", "500")
    try:
        wait_until(lambda: "http://" in shell.log("simulate") or process.poll(), "it serves")
        url = shell.log("simulate").split()[0]
        asked = httpx.post(
            f"{url}/v1/chat/completions",
            json=question("Hello?"),
            headers={"authorization": "Bearer key"},
            trust_env=False,
        )
        assert asked.status_code == 200
    finally:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert time.monotonic() - began < 10
