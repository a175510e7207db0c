"""Commands that are processes, or look after them: from `up` and `worker` to `simulate`."""

import os
import signal
from functools import partial
from typing import Annotated, Any

import typer

from worker import stack
from worker.cli import frame, render
from worker.execution.takeover import end_dead_leases
from worker.settings import Settings
from worker.simulator import FAULTS, Behaviour
from worker.simulator import run as run_simulator
from worker.stack import Plan, StackInfo, lifeline
from worker.store import schema
from worker.store.engine import Database
from worker.telemetry import logs

# Given by the embedded stack to its parts; of no use to a person.
LifelineFd = Annotated[int | None, typer.Option(hidden=True)]
ReadyFd = Annotated[int | None, typer.Option(hidden=True)]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for function in (up, down, worker, flower, exporter, migrate, simulate):
        frame.command(app)(function)


def up(
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes.")] = None,
    flower: Annotated[bool, typer.Option(help="Whether Flower is started.")] = True,
    simulator: Annotated[
        bool | None,
        typer.Option(help="Whether the simulator answers. Default: where there is no key."),
    ] = None,
    lifeline_fd: LifelineFd = None,
) -> None:
    """Run the embedded stack in the foreground: broker, workers, Flower. Ctrl-C stops it."""
    settings = _begin()
    with Database(settings.sqlalchemy_url) as database:
        schema.migrate(database)

    def arranged() -> Plan:
        # Here no other stack of this home runs, and none can start.
        with Database(settings.sqlalchemy_url) as database:
            end_dead_leases(database)
        return stack.arrange(settings, workers=workers, flower=flower, simulator=simulator)

    stack.supervise(settings, arranged, lifeline_fd=lifeline_fd, on_ready=_tell)


def _tell(info: StackInfo) -> None:
    render.note(f"up: broker {info.broker_url}")
    if info.simulator_url:
        render.note(f"simulator: {info.simulator_url} (EVOLINK_API_KEY is not set)")
    if info.flower_url:
        render.note(f"Flower: {info.flower_url}")
    for text in info.notes:
        render.warn(text)


def down() -> None:
    """Stop the embedded stack of this home."""
    stopped = stack.down(Settings.load())
    render.say("stopped" if stopped else "no stack is up")


def worker(
    name: Annotated[str, typer.Option(help="Its name; unique on this host.")] = "worker",
    lifeline_fd: LifelineFd = None,
    ready_fd: ReadyFd = None,
) -> None:
    """Run one worker process. SIGTERM drains it: calls in flight finish, nothing is lost."""
    # Celery is heavy to import, and most commands do without a worker.
    from worker.queue.serve import serve  # noqa: PLC0415

    settings = _begin()
    _end_with_lifeline(lifeline_fd)
    frame.leave(serve(settings, name, partial(lifeline.announce_ready, ready_fd)))


def flower(lifeline_fd: LifelineFd = None) -> None:
    """Run Flower on the broker, on loopback unless CHATQUEUE_FLOWER_ADDRESS says otherwise."""
    from worker.queue.flower import serve_flower  # noqa: PLC0415  # heavy, as above

    settings = _begin()
    _end_with_lifeline(lifeline_fd)
    serve_flower(settings)


def exporter(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any.")] = 9464,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Answer Prometheus with the queue's numbers, read from SQL at each scrape: /metrics."""
    from worker.exporter import serve  # noqa: PLC0415  # as above

    settings = _begin()
    with Database(settings.sqlalchemy_url) as database:
        schema.verify(database)
        serve(database, address, port, render.say)


def migrate() -> None:
    """Bring the database to the schema of this version."""
    settings = _begin()
    with Database(settings.sqlalchemy_url) as database:
        before, after = schema.migrate(database)
    if before == after:
        render.say(f"the database is at schema {after} already")
    else:
        render.say(f"the database went from schema {before or 'none'} to {after}")


def simulate(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any.")] = 8089,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    latency: Annotated[float, typer.Option(min=0, help="Median seconds of an answer.")] = 0.05,
    sigma: Annotated[float, typer.Option(min=0, help="Spread: 0 constant, else log-normal.")] = 0.0,
    fail_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of calls that fail.")] = 0.0,
    faults: Annotated[
        str | None, typer.Option(help=f"Which faults, by commas: {', '.join(sorted(FAULTS))}.")
    ] = None,
    requests_per_minute: Annotated[int, typer.Option("--rpm", min=0, help="0: no limit.")] = 0,
    tokens_per_minute: Annotated[int, typer.Option("--tpm", min=0, help="0: no limit.")] = 0,
    max_in_flight: Annotated[int, typer.Option(min=0, help="0: no limit.")] = 0,
    credits_: Annotated[
        int | None, typer.Option("--credits", min=0, help="Calls that can be paid.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that varies.")] = 0,
    ledger: Annotated[bool, typer.Option(help="Whether calls are kept to be read.")] = True,
    lifeline_fd: LifelineFd = None,
) -> None:
    """Run the simulator of the API: answers, streams, faults and limits, and a ledger of calls."""
    _begin()
    _end_with_lifeline(lifeline_fd)
    wanted: dict[str, Any] = {
        "seed": seed,
        "latency_seconds": latency,
        "latency_sigma": sigma,
        "fail_rate": fail_rate,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_in_flight": max_in_flight,
        "credits": credits_,
    }
    if faults is not None:
        wanted["faults"] = tuple(name.strip() for name in faults.split(","))
    run_simulator(Behaviour(**wanted), host, port, ready=render.say, ledger=ledger)


def _begin() -> Settings:
    settings = Settings.load()
    logs.configure(settings.log_format)
    return settings


def _end_with_lifeline(fd: int | None) -> None:
    """Stop as on SIGTERM when whoever started this process is gone."""
    lifeline.watch(fd, lambda: os.kill(os.getpid(), signal.SIGTERM))
