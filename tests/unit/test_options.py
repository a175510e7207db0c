from typing import Any

import pytest

from worker.jobs.options import JobOptions, check_options

HERE = "http://127.0.0.1:8080"
BATCHS = JobOptions(endpoints=("https://batch.example",), reasks=2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, BATCHS),
        ({"reasks": 0}, JobOptions(BATCHS.endpoints, 0)),
        ({"reasks": 10}, JobOptions(BATCHS.endpoints, 10)),
        ({"endpoints": [f"{HERE}/", "https://x/v1"]}, JobOptions((HERE, "https://x/v1"), 2)),
        ({"endpoints": [HERE], "reasks": 1}, JobOptions((HERE,), 1)),
    ],
)
def test_the_lines_options_win_key_by_key(given: dict[str, Any], expected: JobOptions) -> None:
    assert check_options(given, BATCHS) == expected


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        (
            [],
            "",
            "an object of options (endpoints, reasks, expires, unknown_outcome), is a list of 0",
        ),
        (None, "", "is null"),
        ({"reasks": 11}, "reasks", "a whole number between 0 and 10, is 11"),
        ({"reasks": -1}, "reasks", "is -1"),
        ({"reasks": True}, "reasks", "is true"),
        ({"reasks": 1.0}, "reasks", "is 1.0"),
        ({"reasks": "1"}, "reasks", 'is "1"'),
        ({"endpoints": []}, "endpoints", "at least one base URL, is a list of 0"),
        ({"endpoints": HERE}, "endpoints", "a list of at least one"),
        ({"endpoints": None}, "endpoints", "is null"),
        ({"endpoints": [HERE, 4]}, "endpoints", "holds 4"),
        ({"endpoints": ["ftp://x"]}, "endpoints", "'ftp://x' is not an http(s) URL"),
        ({"endpoints": ["https://"]}, "endpoints", "is not an http(s) URL"),
        ({"endpoints": ["https://a\0b"]}, "endpoints", "is not an http(s) URL"),
        ({"endpoints": ["https://x?y=1"]}, "endpoints", "no query"),
        ({"endpoints": ["https://x#y"]}, "endpoints", "no query, fragment"),
        ({"endpoints": ["https://u:p@x"]}, "endpoints", "or user name"),
        (
            {"priority": 1},
            "priority",
            "is no option of a job; there are endpoints, reasks, expires, unknown_outcome",
        ),
    ],
)
def test_a_bad_option_is_named_with_what_was_expected(given: Any, field: str, words: str) -> None:
    found = check_options(given, BATCHS)
    assert isinstance(found, tuple)
    assert [at for at, _ in found] == [field]
    assert words in found[0][1]


def test_all_bad_options_are_named_at_once() -> None:
    found = check_options({"reasks": 11, "endpoints": [], "x": 1}, BATCHS)
    assert isinstance(found, tuple)
    assert [at for at, _ in found] == ["reasks", "endpoints", "x"]


def test_options_cannot_be_made_wrong() -> None:
    assert JobOptions((f"{HERE}/",)).endpoints == (HERE,)
    with pytest.raises(ValueError, match="not an http"):
        JobOptions(("nowhere",))
    with pytest.raises(ValueError, match="between 0 and 10"):
        JobOptions(reasks=11)
