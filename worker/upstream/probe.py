"""Asking an endpoint whether it is there and takes the key: `GET /v1/models`, which costs nothing.

Called by the `check` command.
"""

from dataclasses import dataclass

import httpx
from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of it. Reachable but not good: it answered, but would not serve this key."""

    is_reachable: bool
    is_good: bool
    message: str


def probe(endpoint: str, key: SecretStr | None, timeout_seconds: float) -> Probe:
    """Ask a base URL for its models. Never raises for what the network does."""
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    try:
        with httpx.Client(timeout=timeout_seconds) as client:
            status = client.get(f"{endpoint}/v1/models", headers=headers).status_code
    except httpx.HTTPError as error:
        return Probe(is_reachable=False, is_good=False, message=f"not reachable: {error}")
    if status in {401, 403}:
        return Probe(is_reachable=True, is_good=False, message=f"it refused the key ({status})")
    if status >= 500:
        return Probe(is_reachable=True, is_good=False, message=f"it answered with status {status}")
    return Probe(is_reachable=True, is_good=True, message="reachable")
