"""The trial that kills workers, in its shortest form; `make trial` runs the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

KILL = Path(__file__).parents[2] / "ops" / "trials" / "kill.py"
SHORT = ("--jobs=150", "--seconds=8", "--every=1.5", "--slots=8", "--workers=2", "--lease=3")


@pytest.mark.long
def test_workers_killed_at_random_lose_nothing_and_every_call_is_on_the_books() -> None:
    with subprocess.Popen(
        [sys.executable, str(KILL), "--seed", "5", *SHORT],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as trial:
        try:
            told, _ = trial.communicate(timeout=150)
        finally:
            trial.terminate()  # it stops its workers then; where it has ended, nothing happens
    assert trial.returncode == 0, told
    assert "nothing lost, nothing unaccounted for" in told
