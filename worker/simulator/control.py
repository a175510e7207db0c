"""The simulator's own paths, `/_simulator/…`: read the ledger, change the behaviour, begin anew.

Routed to by `worker.simulator.service`. They ask for no key: the simulator listens on loopback
unless told otherwise, and holds nothing worth one.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

import msgspec
import orjson

from worker.errors import SettingsError
from worker.simulator.behaviour import Behaviour
from worker.simulator.connection import Request
from worker.simulator.deliveries import Delivery, whole
from worker.simulator.faults import error_body
from worker.simulator.ledger import Ledger

_ENCODER: Final = msgspec.json.Encoder()


class Controlled(Protocol):
    """What is read and changed: the service."""

    behaviour: Behaviour
    ledger: Ledger

    def set(self, fields: Mapping[str, Any]) -> Behaviour:
        """Patch the behaviour."""

    def reset(self) -> None:
        """Forget what was."""


class Control:
    """The handlers, and their paths and methods in `routes`."""

    def __init__(self, service: Controlled) -> None:
        self._service = service
        self.routes: dict[str, dict[str, Callable[[Request], Delivery]]] = {
            "/_simulator/ledger": {"GET": self._ledger},
            "/_simulator/summary": {"GET": self._summary},
            "/_simulator/behaviour": {"GET": self._behaviour, "POST": self._set},
            "/_simulator/reset": {"POST": self._reset},
        }

    def _ledger(self, request: Request) -> Delivery:
        """Give the calls; `?after=N` those with a higher number, `&limit=M` at most so many."""
        query = {
            name: values[-1] for name, values in parse_qs(urlsplit(request.target).query).items()
        }
        for name, value in query.items():
            if name not in {"after", "limit"} or not value.isdecimal():
                return _refused(f"{name}: 'after' and 'limit' are known, as whole numbers", name)
        limit = int(query["limit"]) if "limit" in query else None
        return _ok(self._service.ledger.calls(int(query.get("after", 0)), limit))

    def _summary(self, _: Request) -> Delivery:
        return _ok(self._service.ledger.summary())

    def _behaviour(self, _: Request) -> Delivery:
        return _ok(self._service.behaviour)

    def _set(self, request: Request) -> Delivery:
        try:
            fields = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            return _refused(f"the body is no JSON: {error}", None)
        if not isinstance(fields, dict):
            return _refused("the body must be an object of fields", None)
        try:
            return _ok(self._service.set(fields))
        except SettingsError as error:
            return _refused(str(error), error.faults[0].partition(":")[0])

    def _reset(self, _: Request) -> Delivery:
        self._service.reset()
        return _ok(self._service.ledger.summary())


def _ok(value: Any) -> Delivery:
    return whole(200, _ENCODER.encode(value))


def _refused(message: str, param: str | None) -> Delivery:
    return whole(400, error_body(message, "invalid_request_error", "invalid_value", param))
