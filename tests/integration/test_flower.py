"""Flower as it really runs, on what real workers tell it; and what must never be seen there."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.conftest import wait_until
from tests.integration.conftest import MakeSite, Site, plain, scripted
from worker.jobs.states import State

MARK = "a-secret-prompt-7f3e"


@dataclass
class Flower:
    url: str

    def get(self, path: str) -> str:
        answer = httpx.get(self.url + path, trust_env=False, timeout=10)
        return answer.raise_for_status().text

    def tasks(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/api/tasks?limit=1000"))
        return found

    def is_up(self) -> bool:
        try:
            self.tasks()
        except httpx.HTTPError:
            return False
        return True

    def row(self, ident: str) -> dict[str, Any]:
        found: dict[str, Any] = self.tasks().get(ident, {})
        return found

    def wait_state(self, ident: str, state: str) -> dict[str, Any]:
        wait_until(lambda: self.row(ident).get("state") == state, f"{ident} is {state} in Flower")
        return self.row(ident)


@pytest.fixture(scope="module")
def site(make_site: MakeSite) -> Iterator[Site]:
    made = make_site(latency_seconds=0.1)
    yield made
    made.close()


@contextmanager
def run_flower(site: Site, name: str, **given: Any) -> Iterator[Flower]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = site.settings(flower_port=port, **given)
    with (site.folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "flower"],
            env=settings.environment() | {"FLOWER_UNAUTHENTICATED_API": "true"},
            cwd=site.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    yield Flower(f"http://127.0.0.1:{port}")
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def flower(site: Site) -> Iterator[Flower]:
    with run_flower(site, "flower") as found:
        site.start_worker(max_in_flight=8)
        wait_until(found.is_up, "Flower answers")
        yield found


def test_a_batch_is_a_row_that_moves_and_ends_with_its_counts(site: Site, flower: Flower) -> None:
    batch = site.submit([plain(f"{MARK} {n}") for n in range(200)], "moving.jsonl")
    row = flower.wait_state(batch.id, "PROGRESS")
    assert row["name"] == "chatqueue.batch"
    assert "moving.jsonl" in row["args"]
    assert " failed · " in row["result"]
    assert "ETA" in row["result"]
    site.finished(batch)
    row = flower.wait_state(batch.id, "SUCCESS")
    assert row["result"].startswith("200/200 · 0 failed · ")
    assert row["result"].endswith(" tokens")
    assert "0 tokens" not in row["result"].replace("200", "")


def test_a_batch_with_failed_jobs_ends_as_a_failure(site: Site, flower: Flower) -> None:
    batch = site.submit([scripted("400", MARK), plain(f"{MARK} good")], "failing.jsonl")
    site.finished(batch)
    row = flower.wait_state(batch.id, "FAILURE")
    assert "2/2 · 1 failed" in row["result"]


def test_a_single_jobs_row_has_the_jobs_id(site: Site, flower: Flower) -> None:
    good = site.client.submit(plain(f"{MARK} single"))
    bad = site.client.submit(scripted("404", f"{MARK} bad"))
    assert site.client.wait(good.id, 10).state is State.SUCCEEDED
    assert flower.wait_state(good.id, "SUCCESS")["name"] == "chatqueue.run_job"
    assert flower.wait_state(bad.id, "FAILURE")["name"] == "chatqueue.run_job"


def test_no_prompt_answer_or_key_is_seen_in_flower_or_in_a_log(site: Site, flower: Flower) -> None:
    # The last one makes the API quote the request in its error.
    bodies = [plain(f"{MARK} hidden"), plain(f"{MARK} two", user=MARK), scripted(MARK, "quoted")]
    *answered, quoted = site.run(bodies)
    assert MARK in (quoted.error_message or "")
    single = site.client.wait(site.client.submit(scripted(MARK, "quoted single")).id, 10)
    flower.wait_state(single.id, "FAILURE")
    answers = [(job.content or "")[:25] for job in answered]
    assert all(answers)
    seen = {
        "tasks": json.dumps(flower.tasks(), ensure_ascii=False),
        "page": flower.get("/tasks"),
        "job": flower.get(f"/task/{single.id}"),
        "workers": flower.get("/api/workers"),
        "metrics": flower.get("/metrics"),
        "log": site.logs(),
        "flower's log": (site.folder / "flower.log").read_text(),
    }
    hidden = [MARK, site.base["api_key"], *answers]
    assert [(where, what) for where, text in seen.items() for what in hidden if what in text] == []


def test_with_a_password_set_nobody_comes_in_without_it(site: Site) -> None:
    with run_flower(site, "locked", flower_auth="me:made-up-word") as locked:

        def status(path: str, **asked: Any) -> int:
            return httpx.get(locked.url + path, trust_env=False, timeout=10, **asked).status_code

        def is_up() -> bool:
            try:
                return status("/healthcheck") == 200
            except httpx.HTTPError:
                return False

        wait_until(is_up, "Flower answers")
        for path in ("/", "/tasks", "/workers", "/api/tasks"):
            assert status(path) == 401, path
            assert status(path, auth=("me", "another-word")) == 401, path
            assert status(path, auth=("me", "made-up-word")) == 200, path
    assert "made-up-word" not in (site.folder / "locked.log").read_text()


def test_open_to_others_and_without_a_password_it_does_not_start(site: Site) -> None:
    settings = site.settings(flower_address="0.0.0.0")  # noqa: S104  # to be refused
    done = subprocess.run(
        [sys.executable, "-m", "worker", "flower"],
        env=settings.environment(), cwd=site.folder, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "CHATQUEUE_FLOWER_AUTH" in done.stderr
