"""The exact cache in Redis, shared by machines; bounded by Redis itself (`maxmemory`) and by age.

A cache that fails costs a model call, never a draft.
"""

import redis
import structlog

from draftloop.errors import SetupError

_log = structlog.get_logger("backend")

_PREFIX = "draftloop:"
_KEEP_S = 30 * 24 * 3600


class RedisCache:
    """Answers by key. Safe to call from several threads and processes."""

    def __init__(self, url: str) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            url: `redis://[:password@]host:port/db`.
        Raises:
            SetupError: It is no URL of a Redis.
        """
        try:
            self._redis = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        except ValueError as error:
            raise SetupError(
                "CACHE_URL is no address of a Redis.", hint="Write redis://host:6379/0."
            ) from error

    def get(self, key: str) -> bytes | None:
        """Return the value of a key, or None."""
        try:
            value = self._redis.get(_PREFIX + key)
        except redis.RedisError as error:
            _log.warning("cache not read", error=type(error).__name__)
            return None
        return value if isinstance(value, bytes) else None

    def put(self, key: str, value: bytes) -> None:
        """Keep a value under a key for thirty days."""
        try:
            self._redis.set(_PREFIX + key, value, ex=_KEEP_S)
        except redis.RedisError as error:
            _log.warning("cache not written", error=type(error).__name__)
