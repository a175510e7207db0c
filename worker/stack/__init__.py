"""The embedded stack: all that chatqueue needs on one machine, with no server to install.

A supervisor process runs a real Valkey on a private unix socket, the Celery workers, Flower and,
where there is no key, the simulator::

    with EmbeddedStack(settings, workers=2) as stack:
        ...  # stack.settings has the broker, stack.info.flower_url the page to look at

`EmbeddedStack`, `ensure`, `running` and `down` are for whoever wants a stack; `supervise` with
`arrange` is the body of `chatqueue up`; `lifeline` is for the commands that are parts of one.
"""

from worker.stack import lifeline
from worker.stack.embedded import EmbeddedStack, down, ensure, running
from worker.stack.parts import Part, Plan, Stage, arrange, connected, needs_simulator, plan
from worker.stack.registry import StackInfo
from worker.stack.supervisor import supervise

__all__ = [
    "EmbeddedStack",
    "Part",
    "Plan",
    "StackInfo",
    "Stage",
    "arrange",
    "connected",
    "down",
    "ensure",
    "lifeline",
    "needs_simulator",
    "plan",
    "running",
    "supervise",
]
