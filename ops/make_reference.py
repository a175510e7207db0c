"""Writes ops/reference.md: every setting, command, state and fault the code knows.

Run by `make docs`; a test compares the file with what this program would write.
"""

import re
import sys
from pathlib import Path

import typer
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from worker.cli import build
from worker.jobs.states import TRANSITIONS, AttemptState, BatchState
from worker.settings import PREFIX, Settings

TARGET = Path(__file__).parent / "reference.md"
WIDTH = "88"


def text() -> str:
    """Return the whole document."""
    return "\n".join(
        [
            "# Reference",
            "",
            "Written by `make docs` from the code; a test keeps it true.",
            "",
            "## Settings",
            "",
            *_settings(),
            "",
            "## States",
            "",
            *_states(),
            "",
            "## Commands",
            "",
            *_commands(),
        ]
    )


def _settings() -> list[str]:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        variable = "EVOLINK_API_KEY" if name == "api_key" else PREFIX + name.upper()
        rows.append(f"| `{variable}` | {_default(field)} | {field.description} |")
    return rows


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return ""
    return f"`{','.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _states() -> list[str]:
    rows = ["| a job that is | can become |", "|---|---|"]
    for state, following in TRANSITIONS.items():
        rows.append(
            f"| `{state}` | {', '.join(f'`{one}`' for one in sorted(following)) or 'nothing'} |"
        )
    return [
        *rows,
        "",
        "A batch is " + ", ".join(f"`{state}`" for state in BatchState) + ".",
        "A call in the ledger is " + ", ".join(f"`{state}`" for state in AttemptState) + ".",
    ]


def _commands() -> list[str]:
    app = build()
    group = typer.main.get_command(app)
    names = list(getattr(group, "commands", {}))
    lines: list[str] = []
    for arguments in ([], *([name] for name in names)):
        title = " ".join(["chatqueue", *arguments])
        lines += [f"### {title}", "", "```", _help(app, arguments), "```", ""]
    return lines


def _help(app: typer.Typer, arguments: list[str]) -> str:
    environment = {"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH, "NO_COLOR": "1"}
    result = CliRunner().invoke(
        app, [*arguments, "--help"], env=environment, prog_name="chatqueue", terminal_width=88
    )
    return re.sub(r"[ \t]+$", "", result.output, flags=re.MULTILINE).strip()


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"wrote {TARGET.name}\n")
