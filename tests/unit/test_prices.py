from datetime import date
from decimal import Decimal

import pytest

from worker.errors import SettingsError
from worker.prices import Price, price_of, read_price
from worker.settings import Settings

DAY = date(2026, 5, 1)


def test_a_price_is_of_tokens_in_cached_and_out() -> None:
    price = read_price("gpt-5.1=1.25/0.125/10")
    assert price == Price("gpt-5.1", Decimal("1.25"), Decimal("0.125"), Decimal(10))
    assert price.cost(prompt=1_000_000, cached=400_000, completion=100_000) == Decimal("1.80")
    assert price.cost(0, 0, 0) == 0


def test_more_cached_than_there_was_costs_no_less_than_nothing() -> None:
    assert read_price("m=1/0.5/2").cost(prompt=10, cached=20, completion=0) == Decimal("0.00001")


def test_the_newest_price_that_holds_by_then_counts() -> None:
    prices = [read_price(text) for text in ("m=1/1/1", "m=2/2/2@2026-05-01", "m=3/3/3@2026-06-01")]
    found = [price_of(prices, "m", day) for day in (date(2026, 4, 30), DAY, date(2026, 7, 1))]
    assert [one.input for one in found if one] == [1, 2, 3]


def test_a_pattern_holds_for_all_models_that_match_and_for_no_other() -> None:
    prices = [read_price("gpt-5.1*=1/1/1")]
    assert price_of(prices, "gpt-5.1-thinking", DAY) == prices[0]
    assert price_of(prices, "gpt-4", DAY) is None


@pytest.mark.parametrize(
    "text", ["gpt-5.1", "m=1/2", "m=1/2/x", "m=1..2/1/1", "m=./1/1", "m=1/1/1@soon", "=1/1/1", ""]
)
def test_what_is_no_price_is_refused_with_its_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no (MODEL=INPUT|number)"):
        read_price(text)


def test_prices_are_a_setting_and_travel_to_child_processes() -> None:
    given = Settings.load(prices="a=1/0.1/2, b*=3/3/3@2026-05-01")
    assert [one.model for one in given.prices] == ["a", "b*"]
    assert given.environment()["CHATQUEUE_PRICES"] == "a=1/0.1/2,b*=3/3/3@2026-05-01"


def test_a_wrong_price_names_its_setting() -> None:
    with pytest.raises(SettingsError, match="CHATQUEUE_PRICES"):
        Settings.load(prices="a=1/0.1")


def test_a_day_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"day|month"):
        read_price("m=1/1/1@2026-02-31")
