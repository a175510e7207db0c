"""The exporter as a process of its own, asked as Prometheus asks."""

import subprocess
import sys
from pathlib import Path

import httpx
from pydantic import SecretStr

from tests.contract.acts import submit_batch
from worker.settings import Settings
from worker.store import schema
from worker.store.engine import Database


def test_it_answers_with_how_the_queue_stands_at_each_scrape(tmp_path: Path) -> None:
    settings = Settings.load(
        home=tmp_path,
        database_url=SecretStr(f"sqlite:///{tmp_path / 'queue.db'}"),
        api_key=SecretStr("made-up-word"),
    )
    with Database(settings.sqlalchemy_url) as database:
        schema.migrate(database)
        with subprocess.Popen(
            [sys.executable, "-m", "worker", "exporter", "--port=0"],
            env=settings.environment(), cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                assert process.stdout is not None
                url = process.stdout.readline().strip()
                empty = httpx.get(url, trust_env=False).raise_for_status()
                submit_batch(database, 3)
                full = httpx.get(url, trust_env=False).raise_for_status()
            finally:
                process.terminate()
    queued = 'chatqueue_jobs{queue="bulk",state="queued"}'
    assert f"{queued} 0.0" in empty.text
    assert f"{queued} 3.0" in full.text
    assert full.headers["content-type"].startswith("text/plain")
    assert "made-up-word" not in full.text


def test_without_a_schema_it_says_so_and_does_not_begin(tmp_path: Path) -> None:
    url = SecretStr(f"sqlite:///{tmp_path / 'none.db'}")
    settings = Settings.load(home=tmp_path, database_url=url)
    done = subprocess.run(
        [sys.executable, "-m", "worker", "exporter", "--port=0"],
        env=settings.environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "migrate" in done.stderr
