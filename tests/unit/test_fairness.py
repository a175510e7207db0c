from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from worker.execution.fairness import shares
from worker.store.lanes import Lane

_NAMES = st.text("abcdefgh", min_size=1, max_size=2)


def lane(key: str, priority: int = 0, batch: str | None = None) -> Lane:
    """A lane with work; unless told, of a batch of its own."""
    owner = key if batch is None else batch
    return Lane(key, owner, priority, "gpt-5.1", False, (), True, None)  # noqa: FBT003  # its order


lane_lists = st.lists(
    st.builds(lane, _NAMES, st.integers(-2, 2)), max_size=8, unique_by=lambda one: one.id
)
loads = st.dictionaries(_NAMES, st.integers(0, 30))


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
    top = max((one.priority for one in lanes), default=0)
    highest = {one.id for one in lanes if one.priority == top}
    assert set(shares(lanes, in_flight, free)) <= highest


@given(lane_lists, loads, st.integers(0, 200))
def test_whoever_is_given_a_slot_ends_at_most_one_above_anybody_else(
    lanes: list[Lane], in_flight: dict[str, int], free: int
) -> None:
    given_out = shares(lanes, in_flight, free)
    top = max((one.priority for one in lanes), default=0)
    after = {
        one.id: in_flight.get(one.id, 0) + given_out.get(one.id, 0)
        for one in lanes
        if one.priority == top
    }
    for key in given_out:
        assert after[key] <= min(after.values()) + 1


def test_a_small_batch_behind_a_huge_one_has_half_of_the_slots_at_once() -> None:
    lanes = [lane("huge"), lane("small")]
    assert shares(lanes, {"huge": 500}, 20) == {"small": 20}
    assert shares(lanes, {"huge": 10, "small": 10}, 20) == {"huge": 10, "small": 10}
    assert shares(lanes, {}, 3) == {"huge": 2, "small": 1}


def test_a_higher_priority_takes_everything() -> None:
    assert shares([lane("low"), lane("high", 1)], {"high": 900}, 5) == {"high": 5}


def test_a_batch_of_many_models_has_no_more_than_one_of_a_single_model() -> None:
    lanes = [*(lane(f"model-{n}", batch="many") for n in range(4)), lane("one")]
    given_out = shares(lanes, {}, 80)
    assert given_out["one"] == 40
    assert [given_out[f"model-{n}"] for n in range(4)] == [10] * 4


@given(st.lists(st.tuples(_NAMES, _NAMES), unique_by=lambda one: one[0], min_size=1), loads)
def test_batches_are_served_before_their_lanes(
    pairs: list[tuple[str, str]], in_flight: Mapping[str, int]
) -> None:
    lanes = [lane(key, batch=batch) for key, batch in pairs]
    given_out = shares(lanes, in_flight, 100)
    after = Counter[str]()
    for one in lanes:
        after[one.batch_id] += in_flight.get(one.id, 0) + given_out.get(one.id, 0)
    served = {one.batch_id for one in lanes if given_out.get(one.id)}
    assert all(after[batch] <= min(after.values()) + 1 for batch in served)
