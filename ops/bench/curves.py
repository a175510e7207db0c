"""How cost grows: the axes along which `ops.bench.report` measures, and the points on each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from ops.bench.cases import FLOOR, OURS, Case

SDK: Final = "sdk-aiohttp"
SDK_DEFAULT: Final = "sdk"
EVEN: Final = "all 3.94 s"
HEAVY: Final = "median 2 s, 1 in 100 over 30 s"


@dataclass(frozen=True, slots=True)
class Point:
    """One case on an axis, and whom to measure on it. `x` is where a plot has it."""

    label: str
    x: float
    case: Case
    names: tuple[str, ...] = (OURS,)


def axes(server: str | None, *, full: bool) -> dict[str, tuple[Point, ...]]:
    """Give each axis by its name. `full`: with the batch of a million, which takes long."""
    base = Case(server=server)
    return {
        "calls in flight": tuple(_in_flight(base)),
        "jobs in the batch": tuple(_batch(base, full=full)),
        "KB per answer": tuple(_answers(base)),
        "streams of 200 events": tuple(_streams(base)),
        "database": tuple(_databases(base)),
        "worker processes": tuple(_workers(base)),
        "limits": tuple(_limits(base)),
        "latencies": tuple(_tails(base)),
    }


def _in_flight(base: Case) -> Iterator[Point]:
    # The longer the calls the more of them are in flight: a thousand a second are asked for.
    for count in (100, 500, 2_000, 5_000):
        case = replace(base, in_flight=count, latency=count / 1_000, jobs=max(4_000, 4 * count))
        yield Point(str(count), count, case, (OURS, FLOOR, SDK))


def _batch(base: Case, *, full: bool) -> Iterator[Point]:
    for jobs in (1_000, 10_000, 100_000, *((1_000_000,) if full else ())):
        yield Point(f"{jobs:,}", jobs, replace(base, jobs=jobs, in_flight=1_000))


def _answers(base: Case) -> Iterator[Point]:
    for size in (0.5, 4, 32):
        case = replace(base, answer_bytes=int(size * 1024))
        yield Point(f"{size:g}", size, case, (OURS, FLOOR, SDK))


def _streams(base: Case) -> Iterator[Point]:
    names = (OURS, FLOOR, SDK, SDK_DEFAULT)
    for label, seconds in (("as fast as can be", 0.0), ("one each 10 ms", 0.01)):
        case = replace(base, jobs=1_500, chunks=200, chunk_seconds=seconds)
        yield Point(label, seconds, case, names)


def _databases(base: Case) -> Iterator[Point]:
    yield Point("SQLite", 0, replace(base, server=None, jobs=8_000))
    if base.server:
        yield Point("PostgreSQL", 1, replace(base, jobs=8_000))


def _workers(base: Case) -> Iterator[Point]:
    for count in (1, 2, 4):
        yield Point(str(count), count, replace(base, workers=count, in_flight=800, jobs=12_000))


def _limits(base: Case) -> Iterator[Point]:
    yield Point("none stated", 0, replace(base, jobs=8_000))
    yield Point("stated, not met", 1, replace(base, jobs=8_000, rpm=600_000))


def _tails(base: Case) -> Iterator[Point]:
    case = replace(base, in_flight=1_000, jobs=10_000)
    mean = 3.94  # of a log-normal with median 2 s and 1 in 100 over 30 s
    yield Point(EVEN, 0, replace(case, latency=mean), (OURS, FLOOR))
    heavy = replace(case, latency=2.0, sigma=1.164)
    yield Point(HEAVY, 1, heavy, (OURS, FLOOR))
