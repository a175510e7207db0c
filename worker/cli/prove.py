"""The `prove` command: real work under real trouble, and a verdict."""

import logging
import secrets
import signal
import sys
from types import FrameType
from typing import Annotated, Final

import typer

from worker.cli import frame, render
from worker.prove import Options, Proof, Where
from worker.prove import prove as run_proof
from worker.telemetry import logs

SHORT: Final = {"jobs": 200, "workers": 2, "seconds": 12.0}


def register(app: typer.Typer) -> None:
    """Add this command."""
    frame.command(app)(prove)


def prove(
    seed: Annotated[
        int | None, typer.Option(min=0, help="Repeats a proof. Default: another one each time.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=20, help="Jobs; 1000 by default.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=2, max=16, help="Worker processes; 3 by default.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=5, help="Length of the turmoil; 60 by default.")
    ] = None,
    short: Annotated[
        bool,
        typer.Option("--short", help="200 jobs, 2 workers, 12 seconds, unless said otherwise."),
    ] = False,
    database_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A PostgreSQL; a schema of its own is made and dropped."),
    ] = None,
    broker_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A Redis or RabbitMQ; names of its own, removed after."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder of logs.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a program to read.")
    ] = False,
) -> None:
    """Prove that nothing is lost and nothing is paid twice: real work under real trouble.

    On a scratch stack, against the simulator: workers are killed, stopped and frozen, the broker
    goes down and is emptied, the database is away, messages come twice and out of order, calls are
    refused and cut off, the clock jumps. Exit status: 0 all held, 1 a promise was broken.
    """
    logs.configure("auto", logging.CRITICAL)  # that the broker is away is no news here
    signal.signal(signal.SIGTERM, _interrupt)
    given = {"jobs": jobs, "workers": workers, "seconds": seconds}
    chosen = {name: value for name, value in given.items() if value is not None}
    options = Options(
        seed=secrets.randbelow(1_000_000) if seed is None else seed,
        **((SHORT if short else {}) | chosen),  # type: ignore[arg-type]  # by their names
    )
    where = Where(database_url, broker_url)
    try:
        proof = run_proof(options, where, keep=keep, tell=render.note)
    except KeyboardInterrupt:
        render.note("interrupted: nothing is left of it")
        sys.exit(frame.INTERRUPTED)
    if as_json:
        render.print_json(_as_json(proof))
    else:
        _show(proof)
    if proof.folder is not None:
        render.note(f"logs and evidence: {proof.folder}")
    frame.leave(frame.SUCCEEDED if proof.verdict.holds else frame.JOBS_FAILED)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show(proof: Proof) -> None:
    render.table(
        ("TROUBLE", "TIMES", "WORST RECOVERY"),
        [
            (str(one.kind), str(one.times), "" if one.seconds is None else f"{one.seconds:.1f} s")
            for one in proof.recoveries
        ],
    )
    render.say()
    render.table(
        ("COUNTED", "", "", ""),
        [
            (line.name, str(line.value), render.mark(holds=not line.breaches), line.note)
            for line in proof.verdict.lines
        ],
    )
    for line in proof.verdict.lines:
        for breach in line.breaches:
            render.fail(f"{line.name}: {breach}")
    said = "everything held" if proof.verdict.holds else "a promise was broken"
    repeat = f"chatqueue prove --seed {proof.options.seed}"
    render.say(f"{said} in {proof.seconds:.0f} s; the same again: {repeat}{_sizes(proof)}")


def _sizes(proof: Proof) -> str:
    options = proof.options
    return f" --jobs {options.jobs} --workers {options.workers} --seconds {options.seconds:g}"


def _as_json(proof: Proof) -> dict[str, object]:
    return {
        "seed": proof.options.seed,
        "jobs": proof.options.jobs,
        "workers": proof.options.workers,
        "turmoil_seconds": proof.options.seconds,
        "seconds": round(proof.seconds, 1),
        "holds": proof.verdict.holds,
        "recoveries": [
            {"kind": str(one.kind), "times": one.times, "seconds": one.seconds}
            for one in proof.recoveries
        ],
        "counted": [
            {
                "name": line.name,
                "value": line.value,
                "note": line.note,
                "breaches": list(line.breaches),
            }
            for line in proof.verdict.lines
        ],
        "folder": None if proof.folder is None else str(proof.folder),
    }
