"""The command that tells what was used, and what it cost."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Final

import typer

from worker.cli import frame, render
from worker.jobs import views
from worker.prices import Price
from worker.spending import Spent, total
from worker.store.usage import By

_DAYS: Final = ["%Y-%m-%d"]
_COLUMNS: Final = (
    "CALLS", "ANSWERED", "FAILED", "UNKNOWN", "RETRIES",
    "TOKENS IN", "CACHED", "OUT", "REASONING", "USD", "IN VAIN",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add this command."""
    frame.command(app)(usage)


def usage(
    by: Annotated[By, typer.Option(help="Tell it apart by this.")] = By.DAY,
    since: Annotated[datetime | None, typer.Option(formats=_DAYS, help="From this day on.")] = None,
    until: Annotated[datetime | None, typer.Option(formats=_DAYS, help="To the end of it.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for a spreadsheet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """Show calls, tokens and cost, and what retries cost. Days are in UTC."""
    if as_csv and as_json:
        raise typer.BadParameter("--csv and --json exclude each other")
    with frame.client() as client:
        lines = client.usage(by, since=_begin(since), until=_begin(until, days_later=1))
        prices = client.settings.prices
    if as_json:
        render.print_json([views.as_json(one) for one in lines])
    elif as_csv:
        _print_csv(by, lines)
    else:
        _print_table(by, lines, prices)


def _begin(day: datetime | None, days_later: int = 0) -> datetime | None:
    return None if day is None else day.replace(tzinfo=UTC) + timedelta(days=days_later)


def _print_csv(by: By, lines: Sequence[Spent]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    names = [field.name for field in fields(Spent)]
    writer.writerow([by.value, *names[1:]])
    for one in lines:
        values = (getattr(one, name) for name in names)
        writer.writerow(["" if value is None else value for value in values])


def _print_table(by: By, lines: Sequence[Spent], prices: Sequence[Price]) -> None:
    shown = [*lines, total(lines)] if len(lines) > 1 else lines
    render.table((by.upper(), *_COLUMNS), [_row(one) for one in shown])
    listed = ", ".join(map(str, prices)) or "none are set"
    render.note(f"prices, in USD for a million tokens in/cached/out: {listed}")
    unknown = sum(one.unknown for one in lines)
    if unknown:
        render.warn(f"what {unknown} calls of unknown outcome cost nobody knows: it is in no sum")
    if any(one.cost is None for one in lines):
        render.warn("a model that was used has no price: see CHATQUEUE_PRICES")


def _row(one: Spent) -> tuple[str, ...]:
    counts = (
        one.calls, one.answered, one.failed, one.unknown, one.retries,
        one.prompt_tokens, one.cached_tokens, one.completion_tokens, one.reasoning_tokens,
    )  # fmt: skip
    return (one.key, *map(str, counts), _dollars(one.cost), _dollars(one.cost_in_vain))


def _dollars(cost: Decimal | None) -> str:
    return "?" if cost is None else f"{cost:.4f}"
