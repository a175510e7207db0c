import pytest

from worker.jobs.states import OPEN, TERMINAL, TRANSITIONS, State


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(State)


def test_open_and_terminal_states_are_all_states_and_share_none() -> None:
    assert set(State) == OPEN | TERMINAL
    assert not OPEN & TERMINAL


def test_success_is_final() -> None:
    assert TRANSITIONS[State.SUCCEEDED] == frozenset()


@pytest.mark.parametrize("state", sorted(TERMINAL - {State.SUCCEEDED}))
def test_out_of_another_end_leads_only_a_new_beginning(state: State) -> None:
    assert TRANSITIONS[state] == {State.QUEUED}


def test_only_a_running_job_can_succeed_or_wait_or_be_held() -> None:
    for target in (State.SUCCEEDED, State.WAITING, State.HELD):
        assert [one for one in State if target in TRANSITIONS[one]] == [State.RUNNING]


def test_a_job_fails_with_a_call_or_because_a_person_gives_it_up() -> None:
    failing = {one for one in State if State.FAILED in TRANSITIONS[one]}
    assert failing == {State.RUNNING, State.HELD}


@pytest.mark.parametrize("state", sorted(OPEN))
def test_an_open_job_can_always_be_cancelled_and_expire(state: State) -> None:
    assert {State.CANCELLED, State.EXPIRED} <= TRANSITIONS[state]


def test_every_state_can_be_reached_from_the_first() -> None:
    reached, frontier = {State.QUEUED}, [State.QUEUED]
    while frontier:
        for target in TRANSITIONS[frontier.pop()] - reached:
            reached.add(target)
            frontier.append(target)
    assert reached == set(State)
