"""A local, deterministic stand-in for the upstream chat-completions API.

For `chatqueue simulate`, demos without a key, tests, fault injection and benchmarks. It stands
alone: nothing else in `worker` is imported but `worker.errors`, and it never opens a connection.

What it is told to be is a `Behaviour`; what happened is in its `Ledger`. `serve` runs within a
loop, `run` blocks until a signal, `SimulatorThread` has a loop of its own. A request can also
write its own fate into its body: `"metadata": {"simulate": "500,503+latency=0.2,ok"}`.
"""

from worker.simulator.behaviour import Behaviour
from worker.simulator.faults import FAULTS
from worker.simulator.ledger import Call, Ledger, Summary
from worker.simulator.server import Simulator, SimulatorThread, run, serve

__all__ = [
    "FAULTS",
    "Behaviour",
    "Call",
    "Ledger",
    "Simulator",
    "SimulatorThread",
    "Summary",
    "run",
    "serve",
]
