"""The proof: a scenario of real work under real trouble, and a verdict from independent evidence.

`chatqueue prove` runs it. `plan` says what happens when, `places` and `staff` are what it happens
to, `turmoil` makes it happen, `watch` looks on, and `verdict` judges from three books that know
nothing of each other: the queue's rows, a trigger in the database, and the simulator's ledger.
"""

from worker.prove.plan import Options
from worker.prove.scenario import Proof, Recovery, Where, prove
from worker.prove.verdict import Line, Verdict

__all__ = ["Line", "Options", "Proof", "Recovery", "Verdict", "Where", "prove"]
