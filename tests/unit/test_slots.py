import asyncio
import time

import pytest

from worker.execution.slots import Slots


def test_places_are_taken_as_far_as_there_are_any() -> None:
    slots = Slots(5)
    assert [slots.take(3), slots.take(3), slots.take(3)] == [3, 2, 0]
    assert (slots.free, slots.taken) == (0, 5)


def test_places_given_back_can_be_taken_again() -> None:
    slots = Slots(2)
    slots.take(2)
    slots.give()
    assert slots.take(9) == 1


@pytest.mark.parametrize("gather_seconds", [0.0, 0.01])
def test_waiting_ends_at_once_while_there_is_room(gather_seconds: float) -> None:
    asyncio.run(asyncio.wait_for(Slots(1).wait_free(gather_seconds), 5))


@pytest.mark.parametrize("gather_seconds", [0.0, 0.01])
def test_waiting_ends_when_a_place_is_given_back(gather_seconds: float) -> None:
    async def run() -> None:
        slots = Slots(3)
        slots.take(3)
        waiting = asyncio.create_task(slots.wait_free(gather_seconds))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        slots.give()
        await asyncio.wait_for(waiting, 5)
        assert slots.free == 1

    asyncio.run(run())


def test_many_who_wait_are_all_woken() -> None:
    async def run() -> None:
        slots = Slots(2)
        slots.take(2)
        waiting = [asyncio.create_task(slots.wait_free()) for _ in range(5)]
        await asyncio.sleep(0)
        slots.give(2)
        await asyncio.wait_for(asyncio.gather(*waiting), 5)

    asyncio.run(run())


def test_gathering_ends_early_when_enough_places_are_free() -> None:
    async def run() -> None:
        slots = Slots(1_000)
        slots.take(1_000)
        waiting = asyncio.create_task(slots.wait_free(30.0))
        await asyncio.sleep(0)
        slots.give(20)
        began = time.monotonic()
        await asyncio.wait_for(waiting, 20)
        assert time.monotonic() - began < 10

    asyncio.run(run())


def test_gathering_ends_with_fewer_when_its_time_is_over() -> None:
    async def run() -> None:
        slots = Slots(1_000)
        slots.take(999)
        await asyncio.wait_for(slots.wait_free(0.01), 20)
        assert slots.take(5) == 1

    asyncio.run(run())
