"""What the simulator is told to be: the frozen `Behaviour`, and how it is checked and patched.

Made by the CLI and by tests, patched at run time through `POST /_simulator/behaviour`. Pure: it
never reads a clock; what it means for one call is decided in `worker.simulator.fates`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import msgspec

from worker.errors import SettingsError
from worker.simulator.faults import FAULTS

MODELS: Final = ("gpt-5.1", "gpt-5.1-chat", "gpt-5.1-thinking")
"""What `GET /v1/models` lists when `Behaviour.models` is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What is set. The defaults answer every valid call at once.

    Raises SettingsError, with every field at fault, when a value is out of its range.
    """

    seed: int = 0
    """Another seed: other texts, other latencies, other calls that fail."""

    latency_seconds: float = 0.0
    """Median time from the whole request to the first byte of the answer (or to the fault)."""
    latency_sigma: float = 0.0
    """0: constant. Above: log-normal around the median (median 2 s, p99 30 s is 1.164)."""
    time_to_first_token_seconds: float = 0.0
    """Streams: from the headers and the role to the first content, after the latency."""
    chunk_seconds: float = 0.0
    """Streams: between one event and the next."""

    answer_bytes: int = 0
    """Characters of a text answer; 0: varied, 50 to 400."""
    chunks: int = 0
    """Pieces the text of a stream comes in (at least a character each); 0: word by word."""

    fail_rate: float = 0.0
    """Share of calls, 0 to 1, that meet one of `faults`."""
    faults: tuple[str, ...] = ("429", "500", "502", "503", "reset")
    """Names from `worker.simulator.FAULTS`."""
    retry_after_seconds: float = 1.0
    """The wait asked for by the faults 429 and 503 and over `max_in_flight`; 0: no header."""
    drip_seconds: float = 1.0
    """Between two bytes of the fault slow_drip."""
    huge_bytes: int = 100_000_000
    """Size of the fault huge."""

    requests_per_minute: int = 0
    """A bucket of so many requests, refilled evenly over a minute; 0: no limit."""
    tokens_per_minute: int = 0
    """The same for prompt and completion tokens; a call larger than the bucket takes it all."""
    max_in_flight: int = 0
    """Chat calls at one time; 0: no limit."""
    credits: int | None = None
    """Calls that can still be paid, counted from when this is set; None: any number."""

    keys: tuple[str, ...] = ()
    """Accepted keys; empty: any bearer token that is not empty."""
    models: tuple[str, ...] = ()
    """Known models; empty: any."""
    idempotent: bool = False
    """A repeated Idempotency-Key gets the answer of the first time, unpaid and unlimited."""
    max_body_bytes: int = 50 * 1024 * 1024
    """Larger requests get a 413."""

    def __post_init__(self) -> None:
        if found := [*_out_of_range(self), *_unknown_faults(self)]:
            raise SettingsError(found)

    def patched(self, fields: Mapping[str, Any]) -> Self:
        """Give a copy with these fields set. Values may come from JSON (a list for a tuple).

        Raises SettingsError that names the field when it is unknown, or its value is wrong.
        """
        known = {field.name for field in dataclasses.fields(self)}
        if unknown := sorted(set(fields) - known):
            raise SettingsError([f"{name}: no such field" for name in unknown])
        try:
            return msgspec.convert({**dataclasses.asdict(self), **fields}, type(self))
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at ")
            raise SettingsError([f"{where.strip('`').removeprefix('$.')}: {what}"]) from error


_AT_LEAST: Final[Mapping[str, int]] = {
    "latency_seconds": 0,
    "latency_sigma": 0,
    "time_to_first_token_seconds": 0,
    "chunk_seconds": 0,
    "answer_bytes": 0,
    "chunks": 0,
    "fail_rate": 0,
    "retry_after_seconds": 0,
    "drip_seconds": 0,
    "huge_bytes": 1,
    "requests_per_minute": 0,
    "tokens_per_minute": 0,
    "max_in_flight": 0,
    "credits": 0,
    "max_body_bytes": 1,
}


def _out_of_range(behaviour: Behaviour) -> Iterator[str]:
    for name, least in _AT_LEAST.items():
        value = getattr(behaviour, name)
        if value is not None and not value >= least:  # so that NaN is refused too
            yield f"{name}: {value} is less than {least}"
    if behaviour.fail_rate > 1:
        yield f"fail_rate: {behaviour.fail_rate} is more than 1"
    if behaviour.fail_rate and not behaviour.faults:
        yield "faults: at least one is needed while fail_rate is above 0"


def _unknown_faults(behaviour: Behaviour) -> Iterator[str]:
    for name in behaviour.faults:
        if name not in FAULTS:
            yield f"faults: {name!r} is none of {', '.join(sorted(FAULTS))}"
