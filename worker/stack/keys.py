"""Removing what one installation keeps in a Redis that it shares with others.

Called by `worker.prove`, on a user's Redis. It never empties a database: only keys of the prefix
go.
"""

from typing import Final

import redis

from worker.errors import BrokerError

_TIMEOUT_SECONDS: Final = 5.0
_PAGE: Final = 500


def drop_keys(url: str, prefix: str) -> int:
    """Delete the keys that begin with the prefix and a colon; return how many.

    Raises BrokerError where it cannot be reached.
    """
    try:
        with _connect(url) as client:
            found = list(client.scan_iter(f"{prefix}:*", count=_PAGE))
            return sum(int(client.delete(key)) for key in found)
    except (redis.RedisError, OSError, ValueError) as error:
        raise BrokerError(f"it cannot be reached: {error}") from error


def _connect(url: str) -> "redis.Redis":
    timeouts = {"socket_timeout": _TIMEOUT_SECONDS, "socket_connect_timeout": _TIMEOUT_SECONDS}
    return redis.Redis.from_url(url, **timeouts)
