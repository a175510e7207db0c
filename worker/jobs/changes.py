"""Changing what a stored request asks, for a retry: its model, or a parameter. Pure."""

import json
from collections.abc import Mapping
from typing import Any, Final

from worker.errors import Fault, InvalidRequestsError
from worker.jobs.requests import check_body

_FIXED: Final = frozenset({"messages"})
"""What stays: another conversation is another job."""

_ANY_MESSAGES: Final = [{"role": "user", "content": "…"}]
"""Stands for the stored messages, which were checked when they came."""


def check_changes(changes: Mapping[str, Any]) -> None:
    """Refuse changes that no request can have. Raises InvalidRequestsError."""
    faults = [Fault(0, name, "cannot be changed by a retry") for name in changes if name in _FIXED]
    if faults:
        raise InvalidRequestsError(faults)


def changed(body: str, changes: Mapping[str, Any], line: int, custom_id: str) -> dict[str, Any]:
    """Return a request with these fields in place of its own; None takes one away.

    Raises InvalidRequestsError, which names line and field, where that is no request any more.
    """
    request: dict[str, Any] = json.loads(body)
    for name, value in changes.items():
        if value is None:
            request.pop(name, None)
        else:
            request[name] = value
    shown = json.dumps({**request, "messages": _ANY_MESSAGES}, ensure_ascii=False)
    if found := check_body(shown.encode()).faults:
        raise InvalidRequestsError(
            [Fault(line, f"{custom_id}: {field}", message) for field, message in found]
        )
    return request
