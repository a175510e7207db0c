from worker.prove.watch import Sample, recovery_seconds
from worker.store.scratch import Progress


def samples(*looks: tuple[float, int, dict[int, int]]) -> list[Sample]:
    return [Sample(at, Progress(done, held)) for at, done, held in looks]


def test_recovered_is_when_the_next_job_has_ended() -> None:
    seen = samples((1.0, 5, {}), (2.0, 5, {}), (3.0, 6, {}), (4.0, 9, {}))
    assert recovery_seconds(seen, 1.5) == 1.5


def test_jobs_that_ended_before_are_no_recovery() -> None:
    assert recovery_seconds(samples((1.0, 5, {}), (2.0, 5, {})), 1.5) is None


def test_what_a_killed_worker_held_must_have_been_taken_over() -> None:
    seen = samples((1.0, 5, {11: 3}), (2.0, 6, {11: 3}), (4.0, 8, {11: 1}), (5.0, 9, {12: 1}))
    assert recovery_seconds(seen, 1.5) == 0.5
    assert recovery_seconds(seen, 1.5, dead=[11]) == 2.5
