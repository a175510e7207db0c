import os
import queue
import signal
from collections.abc import Iterator

import pytest

from worker.queue.stopping import SIGNALS, Signals


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("numbers", "at_once"),
    [
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGINT], [False, True, True]),
        ([signal.SIGINT, signal.SIGQUIT], [False, True]),
        ([signal.SIGQUIT, signal.SIGTERM], [True, True]),
    ],
)
def test_the_first_signal_leaves_time_and_the_next_one_none(
    numbers: list[signal.Signals], at_once: list[bool]
) -> None:
    told: queue.SimpleQueue[bool] = queue.SimpleQueue()
    signals = Signals()
    signals.install()
    os.kill(os.getpid(), numbers[0])  # comes before anybody can see to it
    signals.see_to(lambda *, at_once: told.put(at_once))
    for number in numbers[1:]:
        os.kill(os.getpid(), number)
    assert [told.get(timeout=20) for _ in numbers] == at_once
