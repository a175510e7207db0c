"""Where the calls of a lane can go, and with which key. Pure."""

import hashlib
from dataclasses import dataclass
from typing import Final

from worker.gate.gate import Target
from worker.settings import Settings
from worker.store.claims import Claimed
from worker.store.lanes import Lane

FINGERPRINT_DIGITS: Final = 12


class Routes:
    """Knows the endpoints of each kind of request, in order, and the keys by their fingerprints."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = {
            endpoint: fingerprint(key.get_secret_value())
            for endpoint, key in settings.keys().items()
        }

    def targets(self, lane: Lane) -> tuple[Target, ...]:
        """Where a lane's calls can go, the first choice first: never empty."""
        endpoints = lane.endpoints or self._settings.endpoints_for(multimodal=lane.multimodal)
        return tuple(Target(one, self._keys.get(one, ""), lane.model) for one in endpoints)


def fingerprint(key: str) -> str:
    """Name a key without telling it."""
    return hashlib.sha256(key.encode()).hexdigest()[:FINGERPRINT_DIGITS]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A claimed job, and where its call goes.

    `endpoints`: how many places it could go to. `is_probe`: it tries a key that is paused.
    """

    claimed: Claimed
    target: Target
    endpoints: int
    is_probe: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """What the call's row in the ledger is found by: the job's id, and the fence."""
        return self.claimed.id, self.claimed.fence
