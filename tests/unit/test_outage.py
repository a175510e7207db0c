import threading

from structlog.testing import capture_logs

from worker.execution.outage import Outage


def test_an_outage_is_one_line_when_it_begins_and_one_when_it_ends() -> None:
    outage = Outage("database", quiet_seconds=0)
    with capture_logs() as lines:
        outage.over()
        for _ in range(3):
            outage.note(OSError("gone"))
        outage.over()
        outage.over()
    assert [(one["event"], one["what"]) for one in lines] == [
        ("lost", "database"),
        ("back", "database"),
    ]
    assert lines[0]["error"] == "gone"
    assert lines[1]["seconds"] >= 0


def test_a_second_outage_is_told_again() -> None:
    outage = Outage("broker", quiet_seconds=0)
    with capture_logs() as lines:
        for _ in range(2):
            outage.note(OSError())
            outage.over()
    assert [one["event"] for one in lines] == ["lost", "back"] * 2


def test_what_fails_again_and_again_is_one_outage_though_something_succeeds_in_between() -> None:
    outage = Outage("database", quiet_seconds=600)
    with capture_logs() as lines:
        for _ in range(3):
            outage.note(OSError("full"))
            outage.over()
    assert [one["event"] for one in lines] == ["lost"]


def test_threads_that_meet_the_same_outage_tell_it_once() -> None:
    outage = Outage("database")
    with capture_logs() as lines:
        threads = [threading.Thread(target=outage.note, args=(OSError(),)) for _ in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert len(lines) == 1
