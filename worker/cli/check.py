"""The `check` command: settings, database, broker, endpoints. Errors first, then warnings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from worker import stack
from worker.cli import frame, render
from worker.client import reach
from worker.errors import BrokerError, ChatqueueError, SettingsError
from worker.queue.app import check_broker
from worker.settings import Settings
from worker.store import pauses, schema
from worker.store.engine import Database
from worker.upstream.probe import probe


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `level` is ok, warning or error."""

    level: str
    what: str
    message: str


def register(app: typer.Typer) -> None:
    """Add this command."""
    frame.command(app)(check)


def check(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """Check the settings, the database, the broker and the endpoints; nothing is paid for."""
    found = sorted(_look(), key=lambda one: ("error", "warning", "ok").index(one.level))
    if as_json:
        render.print_json([{"level": f.level, "what": f.what, "message": f.message} for f in found])
    else:
        styles = {"error": "red", "warning": "yellow", "ok": "green"}
        for one in found:
            render.say(f"{one.level:<8} {one.what}: {one.message}", styles[one.level])
    frame.leave(frame.BAD_USAGE if any(one.level == "error" for one in found) else frame.SUCCEEDED)


def _look() -> Iterator[Finding]:
    try:
        given = Settings.load()
    except SettingsError as error:
        for fault in error.faults:
            yield Finding("error", "settings", fault)
        return
    yield Finding("ok", "settings", "valid")
    yield from _key(given)
    yield from _database(given)
    settings = reach(given)
    yield _broker(settings)
    yield from _endpoints(settings)


def _key(given: Settings) -> Iterator[Finding]:
    if given.api_key is not None:
        yield Finding("ok", "key", "EVOLINK_API_KEY is set")
    elif stack.needs_simulator(given):
        yield Finding("warning", "key", "EVOLINK_API_KEY is not set: the simulator will answer")
    else:
        yield Finding("error", "key", "EVOLINK_API_KEY is not set, and endpoints are configured")


def _database(settings: Settings) -> Iterator[Finding]:
    try:
        with Database(settings.sqlalchemy_url) as database:
            schema.verify(database)
            with database.read() as connection:
                paused = pauses.active(connection)
    except ChatqueueError as error:
        embedded = settings.database_url is None
        hint = " (the embedded stack migrates it by itself)" if embedded else ""
        yield Finding("warning" if embedded else "error", "database", f"{error}{hint}")
        return
    yield Finding("ok", "database", "reachable, and at this version's schema")
    for one in paused:
        yield Finding(
            "warning",
            "paused",
            f"{one.code} at {one.endpoint}: {one.message}; 'chatqueue resume' goes on at once",
        )


def _broker(settings: Settings) -> Finding:
    if settings.broker_url is None:
        return Finding("warning", "broker", "none is set and no stack is up: 'run' starts its own")
    try:
        check_broker(settings)
    except BrokerError as error:
        return Finding("error", "broker", str(error))
    return Finding("ok", "broker", "reachable")


def _endpoints(settings: Settings) -> Iterator[Finding]:
    simulated = stack.needs_simulator(settings)
    for url in sorted(set(settings.text_endpoints + settings.multimodal_endpoints)):
        if simulated:
            yield Finding("warning", url, "not tried: there is no key")
            continue
        answer = probe(url, settings.keys().get(url), settings.connect_timeout_seconds)
        level = "ok" if answer.is_good else "warning" if answer.is_reachable else "error"
        yield Finding(level, url, answer.message)
