"""What the README tells people to type works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests.conftest import wait_until
from tests.e2e.conftest import Shell, line, question
from worker.cli import build

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def python(shell: Shell, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env=shell.environment,
        cwd=shell.folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_python_example_runs(stack: Shell) -> None:
    (program,) = blocks("python")
    done = python(stack, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("succeeded") == 3


def test_the_example_of_a_web_application_runs_beside_its_own_celery(stack: Shell) -> None:
    done = python(stack, str(ROOT / "ops/examples/web_application.py"))
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout
    assert "the application's own app: shop" in done.stdout


def test_the_commands_in_the_background_run_in_the_order_of_the_text(stack: Shell) -> None:
    requests = [line(str(i), question(f"number {i}")) for i in range(5)]
    requests.append(line("refused", question("refused", "400")))
    stack.write("requests.jsonl", requests)
    batch = stack.ok("submit", "requests.jsonl").strip()
    wait_until(lambda: stack.json("status", batch)["state"] == "completed", "the batch ends")
    (failed,) = stack.json("jobs", "--state", "failed")
    assert "answered" in stack.ok("show", failed["id"])
    assert stack.run("results", batch, "-o", "answers.jsonl").returncode == 1
    assert len((stack.folder / "answers.jsonl").read_text().splitlines()) == 5
    assert "1 job" in stack.ok("retry", batch)


def shown() -> list[list[str]]:
    """Every `chatqueue` command of the README, as words."""
    text = "\n".join(blocks("sh"))
    found = [
        re.sub(r"\s+#.*", "", words)
        for words in re.findall(r"^chatqueue (.*)$", text, re.MULTILINE)
    ]
    return [words.split() for words in found]


@pytest.mark.parametrize("words", shown(), ids=" ".join)
def test_every_command_shown_exists_with_its_options(words: list[str]) -> None:
    group = typer.main.get_command(build())
    commands = getattr(group, "commands", {})
    assert words[0] in commands
    known = {name for option in commands[words[0]].params for name in option.opts}
    assert {word for word in words[1:] if re.match(r"--?[a-z]", word)} <= known
