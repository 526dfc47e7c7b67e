"""Retries: how often, how long, with which pauses.

The only module that imports tenacity.
"""

import threading
from collections.abc import Callable

from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_any,
    stop_before_delay,
    stop_when_event_set,
    wait_exponential_jitter,
    wait_random_exponential,
)
from tenacity.nap import sleep
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from draftloop.errors import ServiceError

# Anything from 0 up to 0.2, 0.4, 0.8, ... 5 s: drafts that failed together come back one by one.
SPREAD: wait_base = wait_random_exponential(multiplier=0.2, max=5)
# 0.5, 1, 2, 4, 8 s, each but the last with up to a second more: six attempts outlast its restart.
OUTLAST_RESTART: wait_base = wait_exponential_jitter(multiplier=0.5, max=8)


def is_service_error(error: BaseException) -> bool:
    """Return whether the same call may succeed after this error."""
    return isinstance(error, ServiceError)


def retrying(
    is_worth_retrying: Callable[[BaseException], bool] = is_service_error,
    *,
    attempts: int | None = None,
    limit_s: float | None = None,
    closed: threading.Event | None = None,
    pauses: wait_base = SPREAD,
) -> Retrying:
    """Return a caller that retries a function while it fails; the last error is raised as it is.

    Args:
        is_worth_retrying: Whether a call that raised this may go well the next time.
        attempts: How many calls at most; None sets no limit, and then `limit_s` has to.
        limit_s: How long at most: no pause begins that would end later. 0 or less is one call.
        closed: Ends pauses and further calls when set: the program stops.
        pauses: How long to wait between calls.
    Raises:
        ValueError: Neither `attempts` nor `limit_s` sets a limit.
    """
    limits: list[stop_base] = []
    if attempts is not None:
        limits.append(stop_after_attempt(attempts))
    if limit_s is not None:
        limits.append(stop_before_delay(max(0.0, limit_s)))
    if not limits:
        raise ValueError("nothing limits the attempts")
    if closed is not None:
        limits.append(stop_when_event_set(closed))
    return Retrying(
        retry=retry_if_exception(is_worth_retrying),
        stop=stop_any(*limits),
        sleep=sleep if closed is None else sleep_using_event(closed),
        wait=pauses,
        reraise=True,
    )
