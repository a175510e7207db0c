"""What the benchmarks make of what they measured; measuring itself is no test's business."""

from typing import Any

import pytest

from ops.bench.bars import bars
from ops.bench.cases import FLOOR, OURS
from ops.bench.curves import axes
from ops.bench.hot_path import REST, counted
from ops.bench.report import report


def row(name: str, cpu: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "cpu_ms_per_job": cpu, "jobs_per_second": 900.0, "peak_mb": 100.0, **more}


def test_a_bar_is_held_by_the_ratio_to_the_floor_in_the_same_run() -> None:
    (held,) = bars({"peers": [row(OURS, 0.3), row(FLOOR, 0.3)]})
    (broken,) = bars({"peers": [row(OURS, 0.4), row(FLOOR, 0.3)]})
    assert (held.found, held.is_held) == ("1", True)
    assert (broken.found, broken.is_held) == ("1.33", False)


def test_a_contender_that_failed_is_no_measure_for_a_bar() -> None:
    rows = [row(OURS, 0.3), {"name": FLOOR, "absent": "not done"}]
    assert bars({"peers": rows}) == []


def test_a_sample_counts_for_the_innermost_stage_of_its_stack() -> None:
    loop = "thread (0x1): calls;run (threading.py:1);Runtime._run_loop (worker/runtime.py:2)"
    call = f"{loop};Kernel._execute (kernel.py:3);Upstream._request (client.py:4)"
    inner = f"{call};Headers.__init__ (httpx/_models.py:5)"
    found = counted(
        f"{loop} 3\n{call} 2\n{inner} 4\nthread (0x2): MainThread;<module> (x.py:1) 5\n"
    )
    assert found == {"the event loop itself": 3, "build the request": 6, REST: 5}


def test_the_report_has_what_was_measured_and_leaves_out_the_rest() -> None:
    rows = [row(FLOOR, 0.25), row(OURS, 0.2), {"name": "litellm", "absent": "no such module"}]
    text = report({"peers": {"when": "2026-01-02 03:04", "found": rows}})
    assert "| **chatqueue**, one worker | 0.200 ms | 0.80 | 900 | 100 MB |" in text
    assert "| litellm | no such module |" in text
    assert "| CPU per job, of the floor's | ≤ 1.1 | 0.8 | yes |" in text
    assert "## Soak" not in text


@pytest.mark.parametrize("server", [None, "postgresql://host/name"])
def test_every_axis_has_points_in_the_order_of_its_plot(server: str | None) -> None:
    for points in axes(server, full=True).values():
        xs = [point.x for point in points]
        assert xs == sorted(set(xs))
        assert all(OURS in point.names for point in points)
