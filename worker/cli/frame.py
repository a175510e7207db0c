"""What every command shares: its settings, its client, and how it ends."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import typer

from worker.cli import render
from worker.client import Client
from worker.errors import ChatqueueError, InvalidRequestsError
from worker.settings import Settings
from worker.telemetry import logs

SUCCEEDED: Final = 0
JOBS_FAILED: Final = 1
BAD_USAGE: Final = 2
INTERRUPTED: Final = 130

P = ParamSpec("P")
R = TypeVar("R")


def command(app: typer.Typer, **options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a command whose errors become a message and exit status 2."""

    def register(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except InvalidRequestsError as error:
                for line in error.lines():
                    render.fail(line)
                count = len(error.faults)
                render.fail(f"{count} fault{'s' if count > 1 else ''}; nothing was enqueued")
            except ChatqueueError as error:
                render.fail(str(error))
            except FileNotFoundError as error:
                render.fail(f"{error.filename}: there is no such file")
            except OSError as error:
                render.fail(str(error))
            sys.exit(BAD_USAGE)

        app.command(**options)(guarded)
        return guarded

    return register


@contextmanager
def client(settings: Settings | None = None) -> Iterator[Client]:
    """A client for the time of a command."""
    settings = settings or Settings.load()
    # Left alone, a warning of ours would be printed among what the command prints.
    logs.configure(settings.log_format, logging.WARNING)
    with Client(settings) as opened:
        yield opened


def leave(status: int) -> None:
    """End the command with an exit status other than 0."""
    if status:
        raise typer.Exit(status)
