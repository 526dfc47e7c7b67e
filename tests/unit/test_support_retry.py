"""What is tried again, how often, and what ends it."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tenacity import wait_fixed, wait_none

from draftloop.errors import FailedRequest, ServiceError, TaskError
from draftloop.support.retry import OUTLAST_RESTART, SPREAD, retrying


def failing(times: int, error: BaseException) -> tuple[Callable[[], int], list[float]]:
    """Return a function that fails some times and then returns how often it was called; and its calls."""
    calls: list[float] = []

    def call() -> int:
        calls.append(time.monotonic())
        if len(calls) <= times:
            raise error
        return len(calls)

    return call, calls


@pytest.mark.parametrize("error", [ServiceError("busy"), FailedRequest("busy")])
def test_a_service_that_comes_back_is_not_noticed(error: ServiceError) -> None:
    call, _ = failing(2, error)
    assert retrying(attempts=3, pauses=wait_none())(call) == 3


def test_the_last_error_is_raised_as_it_is() -> None:
    error = ServiceError("busy")
    call, calls = failing(9, error)
    with pytest.raises(ServiceError) as raised:
        retrying(attempts=3, pauses=wait_none())(call)
    assert raised.value is error
    assert len(calls) == 3


def test_what_fails_again_anyway_is_called_once() -> None:
    call, calls = failing(9, TaskError("wrong"))
    with pytest.raises(TaskError):
        retrying(attempts=3, pauses=wait_none())(call)
    assert len(calls) == 1


def test_the_caller_says_what_is_worth_another_call() -> None:
    call, _ = failing(1, KeyError())
    assert retrying(lambda error: isinstance(error, KeyError), attempts=2, pauses=wait_none())(call) == 2


@pytest.mark.parametrize("limit_s", [-5.0, 0.0, 0.05])
def test_no_pause_begins_that_would_end_after_the_limit(limit_s: float) -> None:
    call, calls = failing(9, ServiceError("busy"))
    started = time.monotonic()
    with pytest.raises(ServiceError):
        retrying(limit_s=limit_s, pauses=wait_fixed(5))(call)
    assert len(calls) == 1
    assert time.monotonic() - started < 4


def test_a_limit_of_time_alone_allows_any_number_of_calls() -> None:
    call, _ = failing(50, ServiceError("busy"))
    assert retrying(limit_s=60, pauses=wait_none())(call) == 51


def test_a_program_that_stops_waits_no_longer() -> None:
    closed = threading.Event()
    call, calls = failing(9, ServiceError("busy"))
    threading.Timer(0.05, closed.set).start()
    started = time.monotonic()
    with pytest.raises(ServiceError):
        retrying(attempts=5, closed=closed, pauses=wait_fixed(60))(call)
    assert time.monotonic() - started < 30
    assert len(calls) == 2, "the pause ended, and the call after it was the last"


def test_attempts_can_be_iterated() -> None:
    call, _ = failing(1, ServiceError("busy"))
    for attempt in retrying(attempts=3, pauses=wait_none()):
        with attempt:
            call()
    assert attempt.retry_state.attempt_number == 2


def test_something_must_limit_the_attempts() -> None:
    with pytest.raises(ValueError, match="nothing limits"):
        retrying(closed=threading.Event())


def paused(pauses: Any, attempts: int) -> list[float]:
    """Return the pauses after failed calls, the last of which is not followed by one."""
    return [pauses(SimpleNamespace(attempt_number=number)) for number in range(1, attempts)]


def test_pauses_are_spread_from_nothing_to_a_limit_that_grows() -> None:
    for _ in range(100):
        for pause, most in zip(paused(SPREAD, 9), [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5], strict=True):
            assert 0 <= pause <= most


def test_six_attempts_outlast_a_restart() -> None:
    for _ in range(100):
        pauses = paused(OUTLAST_RESTART, 6)
        assert all(
            least <= pause <= min(8, least + 1)
            for pause, least in zip(pauses, [0.5, 1, 2, 4, 8], strict=True)
        )
        assert sum(pauses) >= 15.5
