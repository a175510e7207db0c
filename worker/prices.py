"""Prices of models, and what tokens cost by them. Pure.

They are a setting, because what an endpoint charges is between it and whoever pays; each entry may
be dated, so that a price that changes changes nothing of what was paid before.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Final

_ENTRY: Final = re.compile(
    r"(?P<model>[^=\s]+)=(?P<input>[0-9.]+)/(?P<cached>[0-9.]+)/(?P<output>[0-9.]+)"
    r"(?:@(?P<since>\d{4}-\d\d-\d\d))?"
)
_MILLION: Final = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost, of models that match a pattern, from a day on (UTC).

    `cached` are input tokens that the upstream had in its cache.
    """

    model: str
    input: Decimal
    cached: Decimal
    output: Decimal
    since: date = date.min

    def cost(self, prompt: int, cached: int, completion: int) -> Decimal:
        """What so many tokens cost; `prompt` includes `cached`, `completion` all of the output."""
        fresh = max(0, prompt - cached)
        return (fresh * self.input + cached * self.cached + completion * self.output) / _MILLION

    def __str__(self) -> str:
        dated = "" if self.since == date.min else f"@{self.since}"
        return f"{self.model}={self.input}/{self.cached}/{self.output}{dated}"


def read_price(text: str) -> Price:
    """Read `MODEL=INPUT/CACHED/OUTPUT`, with `@YYYY-MM-DD` where it holds from a day on.

    Raises ValueError.
    """
    found = _ENTRY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no MODEL=INPUT/CACHED/OUTPUT[@YYYY-MM-DD]")
    amounts = (found["input"], found["cached"], found["output"])
    if any(amount.count(".") > 1 or not amount.strip(".") for amount in amounts):
        raise ValueError(f"{text!r}: an amount is no number")
    since = date.fromisoformat(found["since"]) if found["since"] else date.min
    fresh, cached, output = map(Decimal, amounts)
    return Price(found["model"], fresh, cached, output, since)


def price_of(prices: Iterable[Price], model: str, day: date) -> Price | None:
    """Find the price of a model on a day: the newest that holds by then; None where none does.

    Of several that begin on the same day, the first counts.
    """
    holding = [one for one in prices if one.since <= day and fnmatchcase(model, one.model)]
    return max(holding, key=lambda one: one.since, default=None)
