from worker.queue.watchdog import DEAF_SECONDS, UNRUNG_SECONDS, Hearing


def test_work_that_a_ring_brings_a_shift_to_is_left_to_it() -> None:
    hearing = Hearing()
    served = UNRUNG_SECONDS - 1
    looks = [(0.0, True), (served, False), (served + 2, True), (served + UNRUNG_SECONDS, True)]
    assert not any(hearing.must_begin(now, unserved=unserved) for now, unserved in looks)
    assert hearing.wants_ring


def test_work_that_no_ring_brings_a_shift_to_is_begun_and_so_is_the_next() -> None:
    hearing = Hearing()
    assert not hearing.must_begin(0.0, unserved=True)
    assert hearing.must_begin(UNRUNG_SECONDS, unserved=True)
    assert not hearing.must_begin(UNRUNG_SECONDS + 1, unserved=False)
    assert hearing.wants_ring, "else nobody would learn that rings are heard again"
    assert hearing.must_begin(UNRUNG_SECONDS + 2, unserved=True), "nothing to wait for any more"


def test_a_ring_that_is_heard_ends_working_without() -> None:
    hearing = Hearing()
    hearing.must_begin(0.0, unserved=True)
    hearing.must_begin(UNRUNG_SECONDS, unserved=True)
    hearing.rung(UNRUNG_SECONDS)
    hearing.heard()
    assert not hearing.unrung
    assert not hearing.must_begin(UNRUNG_SECONDS + 1, unserved=False)
    assert not hearing.wants_ring


def test_rings_that_are_not_heard_are_told_once_in_a_while() -> None:
    hearing = Hearing()
    hearing.rung(0.0)
    hearing.rung(DEAF_SECONDS - 1)
    assert hearing.wants_ring, "one ring may be lost: it takes many to tell"
    assert not hearing.is_deaf(DEAF_SECONDS - 1, can_hear=True)
    assert hearing.is_deaf(DEAF_SECONDS, can_hear=True)
    hearing.rung(DEAF_SECONDS + 1)
    assert not hearing.is_deaf(DEAF_SECONDS + 2, can_hear=True)
    assert hearing.is_deaf(2 * DEAF_SECONDS + 1, can_hear=True)


def test_whoever_cannot_hear_for_another_reason_is_not_deaf() -> None:
    hearing = Hearing()
    hearing.rung(0.0)
    assert not hearing.is_deaf(DEAF_SECONDS, can_hear=False)
    hearing.rung(DEAF_SECONDS)
    assert not hearing.is_deaf(DEAF_SECONDS + 1, can_hear=True)
