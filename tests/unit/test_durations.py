from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.durations import LONGEST, parse_duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("45s", timedelta(seconds=45)),
        ("90m", timedelta(minutes=90)),
        ("12h", timedelta(hours=12)),
        ("30d", timedelta(days=30)),
        ("0s", timedelta(0)),
        (" 7d\n", timedelta(days=7)),
        ("36500d", LONGEST),
    ],
)
def test_a_number_and_a_unit_are_a_duration(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "d", "30", "-1d", "+1d", "1.5h", "1h30m", "30 d", "30D", "1w", "1e3s", "٣d", "1_0s"],
)
def test_anything_else_is_refused_with_the_form_that_is_expected(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"must be a whole number and a unit.*30d\), is '"
    ) as error:
        parse_duration(text)
    assert repr(text[:40]) in str(error.value)


@pytest.mark.parametrize("text", ["36501d", "876001h", "999999999999d", "999999999999s"])
def test_what_no_database_can_reckon_with_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be 36500d at the most"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["9" * 5_000 + "d", "x" * 5_000])
def test_an_endless_text_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(ValueError, match="must be a whole number") as error:
        parse_duration(text)
    assert len(str(error.value)) < 200


@given(st.integers(0, 3_153_600_000))
def test_every_number_of_seconds_up_to_the_longest_is_kept(seconds: int) -> None:
    assert parse_duration(f"{seconds}s") == timedelta(seconds=seconds)
