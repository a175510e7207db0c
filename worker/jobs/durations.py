"""Durations as people type them: `45s`, `90m`, `12h`, `30d`. Pure.

Called by the commands that take one. What is stored and compared is seconds, elsewhere.
"""

import re
from datetime import timedelta
from typing import Final

LONGEST: Final = timedelta(days=36_500)
"""A hundred years: the arithmetic of both databases holds that far back and ahead."""

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_FORM: Final = re.compile(r"([0-9]{1,12})([smhd])", re.ASCII)


def parse_duration(text: str) -> timedelta:
    """Read a whole number and its unit: s, m, h or d. White space around it is tolerated.

    Raises ValueError, whose words follow the name of what was given: "must be …".
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            "must be a whole number and a unit, s, m, h or d (45s, 90m, 12h, 30d), "
            f"is {text[:40]!r}"
        )
    number, unit = found.groups()
    # Compared as a number: a timedelta cannot even hold what is far too long.
    if int(number) > LONGEST / timedelta(**{_UNITS[unit]: 1}):
        raise ValueError(f"must be {LONGEST.days}d at the most, is {text[:40]!r}")
    return timedelta(**{_UNITS[unit]: int(number)})
