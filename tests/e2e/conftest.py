"""The commands as a user runs them: processes of their own, with a home of their own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import wait_until
from worker.simulator import Behaviour, SimulatorThread

KEY: Final = "sk-made-up-key-9b2f"
PROGRAM: Final = (sys.executable, "-m", "worker")
EXAMPLES: Final = Path(__file__).parents[2] / "ops" / "examples" / "requests.jsonl"
COMMAND_SECONDS: Final = 100


@dataclass
class Shell:
    """A folder to work in, and the variables that a user would have set."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CHATQUEUE_", "EVOLINK_"))}
        home = {"CHATQUEUE_HOME": str(self.folder / "home"), "CHATQUEUE_FLOWER_PORT": "0"}
        return kept | {"HOME": str(self.folder)} | home | self.variables

    def run(self, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*PROGRAM, *map(str, words)],
            env=self.environment,
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def ok(self, *words: str | Path, stdin: str = "") -> str:
        """Run a command that must succeed; return what it printed."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *words: str | Path) -> Any:
        """Run a command that must succeed and print JSON."""
        return json.loads(self.ok(*words, "--json"))

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a command; its output goes to files named after it."""
        with (self.folder / f"{words[0]}.log").open("w") as log:
            process = subprocess.Popen(
                [*PROGRAM, *map(str, words)],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.started.append(process)
        return process

    def close(self) -> None:
        """End what a failed test has left running."""
        for process in self.started:
            if process.poll() is None:
                stop(process)

    def log(self, command: str) -> str:
        """What a started command has printed so far."""
        return (self.folder / f"{command}.log").read_text()

    def write(self, name: str, bodies: Iterable[Any]) -> Path:
        """Write a file of requests, a JSON value a line."""
        path = self.folder / name
        path.write_text("".join(json.dumps(body) + "\n" for body in bodies))
        return path


def question(text: str, script: str | None = None, **fields: Any) -> dict[str, Any]:
    """A request; by its script the simulator treats it as told."""
    body = {"model": "gpt-5.1", "messages": [{"role": "user", "content": text}], **fields}
    return body if script is None else body | {"metadata": {"simulate": script}}


def line(custom_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """A line of the batch format."""
    head = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return {**head, "body": body}


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines."""
    return [json.loads(text) for text in path.read_text().splitlines()]


def pointing_at(simulator: SimulatorThread) -> dict[str, str]:
    """The variables of a user who has a key, and the simulator for an API."""
    return {
        "EVOLINK_API_KEY": KEY,
        "CHATQUEUE_TEXT_ENDPOINTS": simulator.url,
        "CHATQUEUE_MULTIMODAL_ENDPOINTS": simulator.url,
        "CHATQUEUE_WORKERS": "1",
        "CHATQUEUE_DRAIN_SECONDS": "5",
    }


def stop(process: subprocess.Popen[str]) -> int:
    """End a command as Ctrl-C does."""
    process.send_signal(signal.SIGINT)
    return process.wait(60)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A user with nothing set but a home."""
    made = Shell(tmp_path, {"CHATQUEUE_WORKERS": "1"})
    yield made
    made.close()


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorThread]:
    """The API, outside of any stack."""
    with SimulatorThread(Behaviour(latency_seconds=0.02)) as running:
        yield running


@pytest.fixture(scope="module")
def stack(simulator: SimulatorThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A user whose stack is up. At the end Ctrl-C must stop it, and leave nothing running."""
    shell = Shell(tmp_path_factory.mktemp("user"), pointing_at(simulator))
    up = shell.start("up", "--no-flower")
    try:
        wait_until(lambda: "up: broker" in shell.log("up") or up.poll(), "the stack is up", 60)
        assert up.poll() is None, shell.log("up")
        yield shell
    finally:
        status = stop(up)
    assert status in {0, 130}
    assert "Traceback" not in shell.log("up")
    assert not (shell.folder / "home" / "stack.json").exists()
