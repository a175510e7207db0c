"""What happens to one call: decided from the behaviour and the number of the call, or scripted.

Called by `worker.simulator.service` once for each call. Pure: the same seed and number give the
same fate on every machine; no clock is read and nothing is counted here.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

from worker.simulator.behaviour import Behaviour
from worker.simulator.faults import FAULTS, OK

_STANDARD: Final = NormalDist()
_WORD: Final = (1 << 64) - 1


class ScriptError(ValueError):
    """A script in `metadata.simulate` cannot be read. The message names the word at fault."""


@dataclass(frozen=True, slots=True)
class Fate:
    """`fault` is a name from `FAULTS` or "ok". None: as the behaviour has it."""

    fault: str = OK
    latency_seconds: float | None = None
    retry_after_seconds: float | None = None


def mix(*values: int) -> int:
    """Give 64 well-mixed bits of these integers (the finaliser of splitmix64, chained)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state


def _share(*values: int) -> float:
    """Give a number strictly between 0 and 1."""
    return ((mix(*values) >> 11) + 0.5) / (1 << 53)


def draw_fate(behaviour: Behaviour, number: int) -> Fate:
    """Give the fate of call `number` when nothing is scripted."""
    if not behaviour.fail_rate or _share(behaviour.seed, number, 1) >= behaviour.fail_rate:
        return Fate()
    return Fate(behaviour.faults[mix(behaviour.seed, number, 2) % len(behaviour.faults)])


def latency(behaviour: Behaviour, number: int) -> float:
    """Seconds until call `number` is answered."""
    if not behaviour.latency_sigma:
        return behaviour.latency_seconds
    deviation = _STANDARD.inv_cdf(_share(behaviour.seed, number, 3))
    return behaviour.latency_seconds * math.exp(behaviour.latency_sigma * deviation)


@lru_cache(maxsize=1024)
def read_script(script: str) -> tuple[Fate, ...]:
    """Read the fates of the 1st, 2nd, … call of one body; the last one repeats.

    The form is `step,step,…`; a step is `word+word+…`; a word is `ok`, the name of a fault,
    `latency=SECONDS` or `retry_after=SECONDS`. Raises ScriptError.
    """
    return tuple(_read_step(step) for step in script.split(","))


def _read_step(step: str) -> Fate:
    fault, numbers = OK, dict[str, float]()
    for word in (word.strip() for word in step.split("+")):
        name, given, value = word.partition("=")
        if given and name in {"latency", "retry_after"}:
            numbers[f"{name}_seconds"] = _read_seconds(word, value)
        elif word == OK or word in FAULTS:
            fault = word
        else:
            raise ScriptError(f"metadata.simulate: {word!r} is no fault, 'ok' or 'latency=SECONDS'")
    return Fate(fault, **numbers)


def _read_seconds(word: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError as error:
        raise ScriptError(f"metadata.simulate: {word!r} needs a number of seconds") from error
    if not 0 <= seconds < math.inf:
        raise ScriptError(f"metadata.simulate: {word!r} needs seconds of 0 or more")
    return seconds
