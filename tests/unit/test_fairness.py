from hypothesis import given
from hypothesis import strategies as st

from worker.execution.fairness import shares
from worker.store.claims import Lane

lane_lists = st.lists(
    st.builds(Lane, st.text("abcdefgh", min_size=1, max_size=2), st.integers(-2, 2)),
    max_size=8,
    unique_by=lambda lane: lane.key,
)
loads = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), st.integers(0, 30))


@given(lane_lists, loads, st.integers(-3, 200))
def test_every_free_slot_is_given_and_no_more(
    lanes: list[Lane], in_flight: dict[str, int], free: int
) -> None:
    given_out = shares(lanes, in_flight, free)
    assert sum(given_out.values()) == (max(free, 0) if lanes else 0)
    assert all(count > 0 for count in given_out.values())


@given(lane_lists, loads, st.integers(0, 200))
def test_only_lanes_of_the_highest_priority_take_part(
    lanes: list[Lane], in_flight: dict[str, int], free: int
) -> None:
    top = max((lane.priority for lane in lanes), default=0)
    highest = {lane.key for lane in lanes if lane.priority == top}
    assert set(shares(lanes, in_flight, free)) <= highest


@given(lane_lists, loads, st.integers(0, 200))
def test_whoever_is_given_a_slot_ends_at_most_one_above_anybody_else(
    lanes: list[Lane], in_flight: dict[str, int], free: int
) -> None:
    given_out = shares(lanes, in_flight, free)
    top = max((lane.priority for lane in lanes), default=0)
    after = {
        lane.key: in_flight.get(lane.key, 0) + given_out.get(lane.key, 0)
        for lane in lanes
        if lane.priority == top
    }
    for key in given_out:
        assert after[key] <= min(after.values()) + 1


def test_a_small_batch_behind_a_huge_one_has_half_of_the_slots_at_once() -> None:
    lanes = [Lane("huge", 0), Lane("small", 0)]
    assert shares(lanes, {"huge": 500}, 20) == {"small": 20}
    assert shares(lanes, {"huge": 10, "small": 10}, 20) == {"huge": 10, "small": 10}
    assert shares(lanes, {}, 3) == {"huge": 2, "small": 1}


def test_a_higher_priority_takes_everything() -> None:
    assert shares([Lane("low", 0), Lane("high", 1)], {"high": 900}, 5) == {"high": 5}
