"""What was used, and what it cost by the prices of the settings: one line per key.

Called by the Python API. A cost is that of the tokens which the answers named; what a call of
unknown outcome cost nobody knows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from worker.prices import Price, price_of
from worker.store.usage import Used

_SUMMED: Final = (
    "calls", "answered", "failed", "unknown", "retries",
    "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spent:
    """What one day, model, batch or endpoint took.

    `calls` are all in the ledger: `answered`, `failed`, of `unknown` outcome, and under way.
    `retries` are those after a job's first. `cost` is in US dollars, of it `cost_in_vain` for calls
    that brought no answer; None where a model used has no price.
    """

    key: str
    calls: int
    answered: int
    failed: int
    unknown: int
    retries: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost: Decimal | None
    cost_in_vain: Decimal | None


def spent(used: Iterable[Used], prices: Sequence[Price]) -> list[Spent]:
    """Sum what was used by its key, each part at the price of its model on its day."""
    parts: dict[str, list[Used]] = {}
    for one in used:
        parts.setdefault(one.key, []).append(one)
    return [_of_key(key, own, prices) for key, own in parts.items()]


def total(lines: Sequence[Spent]) -> Spent:
    """Sum all lines."""
    return Spent(
        "total",
        **_counts(lines),
        cost=_sum(one.cost for one in lines),
        cost_in_vain=_sum(one.cost_in_vain for one in lines),
    )


def _of_key(key: str, own: Sequence[Used], prices: Sequence[Price]) -> Spent:
    return Spent(
        key,
        **_counts(own),
        cost=_sum(_cost(one, prices, "") for one in own),
        cost_in_vain=_sum(_cost(one, prices, "vain_") for one in own),
    )


def _counts(parts: Sequence[Used] | Sequence[Spent]) -> dict[str, Any]:
    return {name: sum(getattr(one, name) for one in parts) for name in _SUMMED}


def _cost(one: Used, prices: Sequence[Price], prefix: str) -> Decimal | None:
    tokens = [getattr(one, f"{prefix}{name}_tokens") for name in ("prompt", "cached", "completion")]
    if not any(tokens):
        return Decimal(0)
    price = price_of(prices, one.model, one.day)
    return None if price is None else price.cost(*tokens)


def _sum(costs: Iterable[Decimal | None]) -> Decimal | None:
    """Sum costs; one that is not known leaves the sum unknown."""
    total = Decimal(0)
    for cost in costs:
        if cost is None:
            return None
        total += cost
    return total
