"""Measures everything, and writes the report: tables, plots, and which bars are held.

    make bench                                              # SQLite; a quarter of an hour
    make bench BENCH='--server postgresql://… --full'       # all of it; an hour and a half
    python -m ops.bench.report --sections "peers,hot path"  # some of it again

What was measured is kept in `measured.json` beside the report, so that a part can be measured anew;
a `note` put there beside a section's `when` is printed with it.
`--full` adds a batch of a million, in and out, and a soak of half an hour. Nothing else should run
on the machine meanwhile. Timings of one machine say little; the ratios in one section compare.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from ops.bench import plots
from ops.bench.bars import bars
from ops.bench.cases import CELERY, FLOOR, OURS, Case, Row, measure, printed
from ops.bench.curves import SDK, SDK_DEFAULT, axes

HERE = Path(__file__).parent
MEASURED = HERE / "measured.json"
REPORT = HERE / "report.md"
PLOTS = HERE / "plots"

PEERS = (
    "aiohttp",
    FLOOR,
    OURS,
    "parallel-script",
    SDK,
    SDK_DEFAULT,
    "litellm",
    "langchain",
    *CELERY,
)
WHO = {
    "aiohttp": "a loop around aiohttp",
    FLOOR: "a loop around httpx on aiohttp: the floor",
    OURS: "**chatqueue**, one worker",
    "parallel-script": "the well-known script's approach",
    SDK: "the official SDK, its aiohttp client",
    SDK_DEFAULT: "the official SDK as it comes",
    "litellm": "litellm",
    "langchain": "langchain-openai, `abatch`",
    "celery-prefork": "a Celery task per request, 32 prefork",
    "celery-threads": "a Celery task per request, 500 threads",
    "celery-gevent": "a Celery task per request, 500 gevent",
}

Section = Callable[[argparse.Namespace], Any]


def main() -> None:
    """Measure the sections that were asked for, and write the report of all that is known."""
    options = _options()
    sections = _sections(options)
    chosen = options.sections.split(",") if options.sections else list(sections)
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    for name in chosen:
        found = sections[name](options)
        measured[name] = {"when": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "found": found}
        MEASURED.write_text(json.dumps(measured, indent=1) + "\n")
    REPORT.write_text(report(measured), encoding="utf-8")
    print(f"written: {REPORT.name}", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", help="the URL of a PostgreSQL; scratch schemas are made there")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--sections", help="their names, by commas; without it all")
    return parser.parse_args()


# --- measuring ------------------------------------------------------------------------------------


def _sections(options: argparse.Namespace) -> dict[str, Section]:
    on_server = [f"--database-url={options.server}"] if options.server else []
    found: dict[str, Section] = {
        "machine": lambda _: _machine(),
        "peers": lambda o: _measured_all(PEERS, Case(server=o.server)),
        "hot path": lambda _: printed("hot_path", on_server),
        **{name: _axis(name) for name in axes(options.server, full=options.full)},
        "fairness": lambda _: printed("fairness", on_server),
        "in and out": lambda o: _in_and_out(on_server, full=o.full),
    }
    if options.full:
        found["soak"] = lambda _: _soak(on_server)
    return found


def _machine() -> Row:
    return {
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
    }


def _measured_all(names: Sequence[str], case: Case) -> list[Row]:
    return [{"name": name, **measure(name, case)} for name in names]


def _axis(axis: str) -> Section:
    def run(options: argparse.Namespace) -> list[Row]:
        return [
            {"name": name, "x": point.x, "label": point.label, **measure(name, point.case)}
            for point in axes(options.server, full=options.full)[axis]
            for name in point.names
        ]

    return run


def _in_and_out(on_server: Sequence[str], *, full: bool) -> list[Row]:
    sizes = (10_000, 100_000, *((1_000_000,) if full else ()))
    return [printed("in_and_out", [f"--lines={lines}", *on_server]) for lines in sizes]


def _soak(on_server: Sequence[str]) -> list[Row]:
    words = [sys.executable, "-m", "ops.bench.soak", *on_server]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- writing --------------------------------------------------------------------------------------


def report(measured: Mapping[str, Any]) -> str:
    """Write the report of what was measured, by section; a section that is missing is left out."""
    parts = [_head(measured), _bars(measured), _peers(measured), _hot_path(measured)]
    parts += [_growth(name, measured) for name in axes(None, full=False)]
    parts += [_fairness(measured), _through(measured), _soaked(measured)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _found(measured: Mapping[str, Any], section: str) -> Any:
    return measured[section]["found"] if section in measured else None


def _title(name: str, measured: Mapping[str, Any]) -> str:
    note = measured[name].get("note", "")
    return (
        f"## {name[0].upper()}{name[1:]}\n\nMeasured {measured[name]['when']} UTC. {note}".rstrip()
        + "\n"
    )


def _head(measured: Mapping[str, Any]) -> str:
    machine = _found(measured, "machine") or {}
    return f"""# What a job costs, beside the others

Written by `make bench` on {machine.get("cores")} cores, {machine.get("memory_gb")} GB and Python \
{machine.get("python")}; simulator, database, broker and
whoever is measured share them. Unless a table says otherwise: 4,000 plain answers of 50 to 400
characters after 0.5 s each, 500 in flight. CPU is that of the processes which make the calls, user
and system, from the moment they are ready. chatqueue has all of it switched on: every call in the
ledger before it is made, every answer committed, limits, circuits, events. The others store nothing
(the script appends to a file) and lose what they have when they are killed. The CPU of the same
program differs by a tenth from run to run; compare within a table."""


def _bars(measured: Mapping[str, Any]) -> str:
    rows = [(bar.what, bar.wanted, bar.found, "yes" if bar.is_held else "**no**")
            for bar in bars({name: part["found"] for name, part in measured.items()})]  # fmt: skip
    return "## Bars\n\n" + _table(("what", "bar", "measured", "held"), rows)


def _peers(measured: Mapping[str, Any]) -> str:
    rows = _found(measured, "peers")
    if not rows:
        return ""
    floor = next(row["cpu_ms_per_job"] for row in rows if row["name"] == FLOOR)
    lines = [
        (WHO[row["name"]], row["absent"], "", "", "")
        if "absent" in row
        else (
            WHO[row["name"]],
            f"{row['cpu_ms_per_job']:.3f} ms",
            f"{row['cpu_ms_per_job'] / floor:.2f}",
            f"{row['jobs_per_second']:,.0f}",
            f"{row['peak_mb']:,.0f} MB",
        )
        for row in rows
    ]
    heads = ("who", "CPU per job", "of the floor", "jobs/s", "peak memory")
    return _title("peers", measured) + "\n" + _table(heads, lines)


def _hot_path(measured: Mapping[str, Any]) -> str:
    found = _found(measured, "hot path")
    if not found:
        return ""
    whole = found["cpu_ms_per_job"]
    lines = [(stage, f"{ms:.3f} ms", f"{ms / whole:.0%}") for stage, ms in found["stages"].items()]
    note = (
        f"Of {whole:.3f} ms per job, by {found['samples']:,} samples of who holds the interpreter\n"
        "(`python -m ops.bench.hot_path`). What the kernel does for it counts where it was asked.\n"
    )
    return _title("hot path", measured) + note + "\n" + _table(("stage", "CPU", "share"), lines)


def _growth(axis: str, measured: Mapping[str, Any]) -> str:
    rows = _found(measured, axis)
    if not rows:
        return ""
    picture = PLOTS / f"{axis.replace(',', '').replace(' ', '-')}.svg"
    PLOTS.mkdir(exist_ok=True)
    good = [row for row in rows if "absent" not in row]
    plots.draw(axis, good, picture)
    lines = [
        (
            row["label"],
            row["name"],
            f"{row['cpu_ms_per_job']:.3f} ms",
            f"{row['jobs_per_second']:,.0f}",
            f"{row['peak_mb']:,.0f} MB",
            f"{row['while_backlog']['slots_busy']:.1%}" if "while_backlog" in row else "",
        )
        for row in good
    ]
    heads = (axis, "who", "CPU per job", "jobs/s", "peak memory", "slots busy")
    image = f"![{axis}](plots/{picture.name})"
    return _title(axis, measured) + f"\n{_table(heads, lines)}\n\n{image}"


def _fairness(measured: Mapping[str, Any]) -> str:
    found = _found(measured, "fairness")
    if not found:
        return ""
    lines = [
        (
            when,
            "{p50:.0f} / {p99:.0f}".format(**found[when]["until_sent_ms"]),
            "{p50:.0f} / {p99:.0f}".format(**found[when]["beyond_the_call_ms"]),
            f"{found[when]['small_batch_seconds']:.2f} s",
        )
        for when in ("alone", "behind")
    ]
    heads = ("", "single job: ms until sent, p50 / p99", "ms beyond the call", "100 jobs")
    note = "Alone on the worker, and while a batch of 100,000 runs on it (`ops.bench.fairness`).\n"
    return _title("fairness", measured) + note + "\n" + _table(heads, lines)


def _through(measured: Mapping[str, Any]) -> str:
    rows = _found(measured, "in and out")
    if not rows:
        return ""
    lines = [
        (
            f"{row['lines']:,}",
            f"{row['lines_in_per_second']:,}",
            f"{row['peak_mb_in']:.0f} MB",
            f"{row['lines_out_per_second']:,}",
            f"{row['peak_mb_out']:.0f} MB",
        )
        for row in rows
    ]
    heads = ("lines", "handed in, lines/s", "peak", "written out, lines/s", "peak")
    note = "One process that checks and stores a file, one that writes its results.\n"
    return _title("in and out", measured) + note + "\n" + _table(heads, lines)


def _soaked(measured: Mapping[str, Any]) -> str:
    rows = _found(measured, "soak")
    if not rows:
        return ""
    names = ("minute", "memory_mb", "threads", "files", "connections", "jobs_per_second")
    kept = [row for number, row in enumerate(rows) if number % 5 == 0 or number == len(rows) - 1]
    lines = [tuple(f"{row[name]:,.0f}" for name in names) for row in kept]
    heads = ("minute", "memory, MB", "threads", "open files", "connections", "jobs/s")
    note = "Plain answers and streams by turns, one call in fifty fails (`ops.bench.soak`).\n"
    return _title("soak", measured) + note + "\n" + _table(heads, lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
