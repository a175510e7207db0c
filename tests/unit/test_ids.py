import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.jobs.ids import new_id


def test_an_id_is_its_prefix_and_32_hex_digits() -> None:
    assert re.fullmatch(r"job_[0-9a-f]{32}", new_id("job"))


def test_ids_sort_by_the_order_of_their_making() -> None:
    made = [new_id("job") for _ in range(20_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_ids_begin_with_the_time_so_that_processes_agree_roughly() -> None:
    milliseconds = int(new_id("job")[4:16], 16)
    assert abs(milliseconds / 1000 - time.time()) < 60


def test_ids_grow_even_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_id("job")
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    after = [new_id("job") for _ in range(3)]
    assert [before, *after] == sorted([before, *after])


def test_threads_never_make_the_same_id() -> None:
    with ThreadPoolExecutor(8) as pool:
        groups = list(pool.map(lambda _: [new_id("job") for _ in range(2_000)], range(8)))
    assert all(group == sorted(group) for group in groups)
    assert len({one[:22] for group in groups for one in group}) == 16_000
