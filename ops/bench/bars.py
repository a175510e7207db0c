"""The bars that chatqueue is held to, and what was measured against each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ops.bench.cases import FLOOR, OURS
from ops.bench.curves import EVEN, HEAVY, SDK, SDK_DEFAULT

Found = Mapping[str, Any]
"""What each section has found, by its name."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: at most, or at least, so much of a measured value."""

    what: str
    wanted: str
    found: str
    is_held: bool


def bars(found: Found) -> list[Bar]:
    """Hold what was measured against the bars; a bar whose section is missing is left out."""
    return [bar for section, make in _MAKERS if section in found for bar in make(found[section])]


def _at_most(what: str, value: float, limit: float, unit: str = "") -> Bar:
    return Bar(what, f"≤ {limit:g}{unit}", f"{value:.3g}{unit}", value <= limit)


def _at_least(what: str, value: float, limit: float, unit: str = "") -> Bar:
    return Bar(what, f"≥ {limit:,g}{unit}", f"{_figures(value)}{unit}", value >= limit)


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"  # reads better so


def _row(rows: Sequence[Found], name: str, label: str | None = None) -> Found | None:
    chosen = (row for row in rows if row["name"] == name and label in {None, row.get("label")})
    return next((row for row in chosen if "absent" not in row), None)


def _cpu(rows: Sequence[Found], ours: str, other: str, label: str | None = None) -> float | None:
    mine, theirs = _row(rows, ours, label), _row(rows, other, label)
    if mine is None or theirs is None:
        return None
    return float(mine["cpu_ms_per_job"]) / float(theirs["cpu_ms_per_job"])


def _peers(rows: Sequence[Found]) -> Iterator[Bar]:
    for what, other, limit in (
        ("CPU per job, of the floor's", FLOOR, 1.1),
        ("CPU per job, of the official SDK's with its aiohttp client", SDK, 0.5),
        ("CPU per job, of the official SDK's as it comes", SDK_DEFAULT, 0.2),
    ):
        ratio = _cpu(rows, OURS, other)
        if ratio is not None:
            yield _at_most(what, ratio, limit)


def _in_flight(rows: Sequence[Found]) -> Iterator[Bar]:
    if (row := _row(rows, OURS, "5000")) is not None:
        yield _at_most("5,000 calls in flight: memory", row["peak_mb"], 400, " MB")


def _batch(rows: Sequence[Found]) -> Iterator[Bar]:
    if (row := _row(rows, OURS, "100,000")) is not None:
        yield _at_least("one worker process", row["jobs_per_second"], 1_000, " jobs/s")


def _streams(rows: Sequence[Found]) -> Iterator[Bar]:
    ratio = _cpu(rows, OURS, SDK_DEFAULT, "one each 10 ms")
    if ratio is not None:
        yield _at_most("a stream of 200 events, of the official SDK's CPU", ratio, round(1 / 6, 3))


def _latencies(rows: Sequence[Found]) -> Iterator[Bar]:
    even, heavy = (_row(rows, OURS, label) for label in (EVEN, HEAVY))
    if even is None or heavy is None:
        return
    busy = heavy["while_backlog"]["slots_busy"] * 100
    yield _at_least("heavy tails: slots busy until the backlog ends", busy, 95, " %")
    costs = [row["while_backlog"]["cpu_ms_per_job"] for row in (heavy, even)]
    bar = _at_most("heavy tails: CPU per job, of that of even latencies", costs[0] / costs[1], 1.3)
    floor = _cpu_of_floor(rows)
    yield bar if floor is None else replace(bar, found=f"{bar.found} (the floor: {floor:.3g})")


def _cpu_of_floor(rows: Sequence[Found]) -> float | None:
    even, heavy = (_row(rows, FLOOR, label) for label in (EVEN, HEAVY))
    if even is None or heavy is None:
        return None
    return float(heavy["cpu_ms_per_job"]) / float(even["cpu_ms_per_job"])


def _fairness(found: Found) -> Iterator[Bar]:
    sent = found["alone"]["until_sent_ms"]["p50"]
    yield _at_most("a single job, idle system: until it is sent, p50", sent, 20, " ms")
    beyond = found["behind"]["beyond_the_call_ms"]["p99"]
    yield _at_most("single jobs beside 100,000: beyond the call, p99", beyond, 250, " ms")
    times = found["small_batch_times_its_time_alone"]
    yield _at_most("100 jobs behind 100,000: times their time alone", times, 2)


def _through(rows: Sequence[Found]) -> Iterator[Bar]:
    largest = max(rows, key=lambda row: int(row["lines"]))
    lines = f"{largest['lines']:,} lines"
    yield _at_least(f"handing in, {lines}", largest["lines_in_per_second"], 25_000, " lines/s")
    smallest = min(rows, key=lambda row: int(row["lines"]))
    for way in ("in", "out"):
        times = largest[f"peak_mb_{way}"] / smallest[f"peak_mb_{way}"]
        what = f"memory, {lines} {way}, times that of {smallest['lines']:,}"
        yield _at_most(what, times, 1.5)


def _soak(rows: Sequence[Found]) -> Iterator[Bar]:
    settled = rows[2:]
    half = len(settled) // 2
    for name in ("memory_mb", "threads", "files", "connections"):
        first = sum(row[name] for row in settled[:half]) / half
        second = sum(row[name] for row in settled[-half:]) / half
        yield _at_most(f"soak: {name.split('_')[0]}, second half of first", second / first, 1.05)


_MAKERS: Final[tuple[tuple[str, Callable[[Any], Iterator[Bar]]], ...]] = (
    ("peers", _peers),
    ("jobs in the batch", _batch),
    ("calls in flight", _in_flight),
    ("streams of 200 events", _streams),
    ("latencies", _latencies),
    ("fairness", _fairness),
    ("in and out", _through),
    ("soak", _soak),
)
