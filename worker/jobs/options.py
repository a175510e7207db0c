"""Options of a single job, which no upstream sees: where it may be sent, how often it is asked.

They come with a submission as a whole, or in a line's envelope under the key `chatqueue`; there
each key wins over the submission's. Pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from worker.jobs.durations import parse_duration
from worker.jobs.requests import Finding, shown
from worker.settings import UnknownOutcome, base_url

MAX_REASKS: Final = 10


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How one job is to be run. Raises ValueError.

    `endpoints`: base URLs to use in place of the settings', in order of preference (none: the
    settings'). `reasks`: how often an answer that does not match the schema of the request's
    `response_format` is asked for again, with what was wrong with it. `expires_seconds`: so long
    after its submission no call is begun for it any more; None: no end. `unknown_outcome`: what
    becomes of it where a call may have been billed and brought no answer; None: as is set.
    """

    endpoints: tuple[str, ...] = ()
    reasks: int = 0
    expires_seconds: float | None = None
    unknown_outcome: UnknownOutcome | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoints", tuple(map(base_url, self.endpoints)))
        object.__setattr__(self, "reasks", _reasks(self.reasks))
        if self.expires_seconds is not None and not self.expires_seconds > 0:
            raise ValueError(f"a job expires after more than 0 s, not {self.expires_seconds:g}")
        if self.unknown_outcome is not None:
            object.__setattr__(self, "unknown_outcome", _unknown_outcome(self.unknown_outcome))


def check_options(given: Any, rest: JobOptions) -> JobOptions | tuple[Finding, ...]:
    """Check the options of a line, any JSON value: they over `rest`, or all that is wrong."""
    if not isinstance(given, Mapping):
        return (("", f"must be an object of options ({_KNOWN}), is {shown(given)}"),)
    faults: list[Finding] = []
    values: dict[str, Any] = {}
    for key, value in given.items():
        try:
            name, rule = _RULES.get(key, ("", _unknown))
            values[name] = rule(value)
        except ValueError as error:
            faults.append((key, str(error)))
    return tuple(faults) or replace(rest, **values)


def _endpoints(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list of at least one base URL, is {shown(value)}")
    if odd := [one for one in value if not isinstance(one, str)]:
        raise ValueError(f"must be a list of base URLs, holds {shown(odd[0])}")
    return tuple(map(base_url, value))


def _reasks(value: Any) -> int:
    if type(value) is int and 0 <= value <= MAX_REASKS:  # true is no number
        return value
    raise ValueError(f"must be a whole number between 0 and {MAX_REASKS}, is {shown(value)}")


def _expires(value: Any) -> float:
    seconds = parse_duration(value).total_seconds() if isinstance(value, str) else 0.0
    if not seconds:
        raise ValueError(f'must be a duration such as "24h", is {shown(value)}')
    return seconds


def _unknown_outcome(value: Any) -> UnknownOutcome:
    try:
        return UnknownOutcome(value)
    except ValueError:
        known = " or ".join(UnknownOutcome)
        raise ValueError(f"must be {known}, is {shown(value)}") from None


def _unknown(_: Any) -> Any:
    raise ValueError(f"is no option of a job; there are {_KNOWN}")


_RULES: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "endpoints": ("endpoints", _endpoints),
    "reasks": ("reasks", _reasks),
    "expires": ("expires_seconds", _expires),
    "unknown_outcome": ("unknown_outcome", _unknown_outcome),
}
_KNOWN: Final = ", ".join(_RULES)

NO_OPTIONS: Final = JobOptions()
