"""The retry policy: which errors are retried, and after which wait."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redline import (
    NO_RETRY,
    CommandError,
    ConnectionFailedError,
    ItemsFailedError,
    ModelChangedError,
    ProtocolError,
    RedlineError,
    RetryPolicy,
    ServiceError,
)
from redline.http.retry import is_retryable
from redline.wire import ERROR_TABLE, ErrorBody, ErrorCode

UNREACHABLE = ConnectionFailedError("unreachable")
STEADY = RetryPolicy(max_attempts=None, max_elapsed_s=None, first_wait_s=1.0, longest_wait_s=10.0, has_jitter=False)

quickly = settings(deadline=None, database=None, max_examples=100)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.none() | st.integers(1, 10),
    max_elapsed_s=st.none() | st.floats(0.0, 300.0),
    first_wait_s=st.floats(0.0, 5.0),
    longest_wait_s=st.floats(0.0, 60.0),
    has_jitter=st.booleans(),
)


def refusal(code: ErrorCode = ErrorCode.OVERLOADED, retry_after_s: float | None = None) -> ServiceError:
    return ServiceError(ErrorBody.of(code, "no"), ERROR_TABLE[code].status, retry_after_s)


@pytest.mark.parametrize("code", ErrorCode)
def test_a_refusal_is_retried_if_the_table_says_retryable(code: ErrorCode) -> None:
    retryable = ERROR_TABLE[code].retryable
    assert is_retryable(refusal(code)) is retryable
    assert (STEADY.wait_s(refusal(code), 1, 0.0) is not None) is retryable


def test_the_service_s_retryable_field_decides() -> None:
    body = ErrorBody(code="code_of_a_newer_server", message="later", retryable=True)
    assert STEADY.wait_s(ServiceError(body, 418), 1, 0.0) == 1.0


@pytest.mark.parametrize(
    "error",
    [
        ProtocolError("not Redline"),
        ItemsFailedError([(0, ErrorBody.of(ErrorCode.OVERLOADED, "no"))]),
        ModelChangedError("swapped"),
        CommandError("stop"),
        RedlineError("anything"),
    ],
)
def test_other_errors_are_not_retried(error: RedlineError) -> None:
    assert not is_retryable(error)
    assert STEADY.wait_s(error, 1, 0.0) is None


def test_a_missing_answer_is_retried() -> None:
    assert is_retryable(UNREACHABLE)
    assert STEADY.wait_s(UNREACHABLE, 1, 0.0) == 1.0


def test_waits_double_up_to_the_longest() -> None:
    waits = [STEADY.wait_s(UNREACHABLE, attempt, 0.0) for attempt in range(1, 8)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_the_millionth_wait_is_the_longest() -> None:
    assert STEADY.wait_s(UNREACHABLE, 1_000_000, 0.0) == 10.0


@pytest.mark.parametrize("tries", [1, 2, 5])
def test_max_attempts_counts_attempts_not_waits(tries: int) -> None:
    policy = RetryPolicy(max_attempts=tries, max_elapsed_s=None)
    waits = [policy.wait_s(UNREACHABLE, attempt, 0.0) for attempt in range(1, tries + 2)]
    assert [wait is not None for wait in waits] == [True] * (tries - 1) + [False, False]


def test_no_retry_stops_after_the_first_failure() -> None:
    assert NO_RETRY.wait_s(UNREACHABLE, 1, 0.0) is None
    assert NO_RETRY.wait_s(refusal(retry_after_s=0.0), 1, 0.0) is None


@pytest.mark.parametrize(
    ("retry_after_s", "wait_s"),
    [
        (5.0, 5.0),  # longer than the policy's 1 s: honoured
        (10.0, 10.0),
        (11.0, 10.0),  # capped
        (math.inf, 10.0),
        (0.2, 1.0),  # shorter than the policy's wait: 1 s
        (0.0, 1.0),
    ],
)
def test_retry_after_is_honoured_and_capped(retry_after_s: float, wait_s: float) -> None:
    assert STEADY.wait_s(refusal(retry_after_s=retry_after_s), 1, 0.0) == wait_s


def test_jitter_never_undercuts_retry_after() -> None:
    policy = RetryPolicy(first_wait_s=1.0, longest_wait_s=10.0, max_elapsed_s=None)
    assert {policy.wait_s(refusal(retry_after_s=3.0), 1, 0.0) for _ in range(100)} == {3.0}


def test_no_attempt_begins_after_max_elapsed_s() -> None:
    policy = RetryPolicy(max_attempts=None, max_elapsed_s=30.0, first_wait_s=4.0, longest_wait_s=60.0, has_jitter=False)
    assert policy.wait_s(UNREACHABLE, 1, 26.0) == 4.0  # the next attempt begins exactly at 30 s
    assert policy.wait_s(UNREACHABLE, 1, 26.001) is None
    assert policy.wait_s(UNREACHABLE, 2, 26.0) is None  # would be 34 s
    assert policy.wait_s(refusal(retry_after_s=20.0), 1, 5.0) == 20.0
    assert policy.wait_s(refusal(retry_after_s=40.0), 1, 5.0) is None  # not cut short to fit


def test_jitter_spreads_waits_over_the_upper_half() -> None:
    random.seed(0)
    policy = RetryPolicy(max_attempts=None, max_elapsed_s=None, first_wait_s=1.0, longest_wait_s=10.0)
    for attempt, full in [(1, 1.0), (3, 4.0), (9, 10.0)]:
        waits = [policy.wait_s(UNREACHABLE, attempt, 0.0) for _ in range(1000)]
        shares = [wait / full for wait in waits if wait is not None]
        assert len(shares) == 1000
        assert 0.5 <= min(shares) < 0.52
        assert 0.98 < max(shares) <= 1.0


def test_repeated_internal_errors_are_not_retried_without_limit() -> None:
    waits = [STEADY.wait_s(refusal(ErrorCode.INTERNAL), attempt, 0.0) for attempt in range(1, 7)]
    assert waits == [1.0, 2.0, 4.0, 8.0, None, None]
    assert STEADY.wait_s(refusal(ErrorCode.OVERLOADED), 5, 0.0) == 10.0  # overload is retried


@pytest.mark.parametrize(("tries", "item_tries"), [(None, 5), (9, 5), (5, 5), (2, 2), (1, 1)])
def test_single_items_are_tried_a_few_times_at_most(tries: int | None, item_tries: int) -> None:
    policy = RetryPolicy(max_attempts=tries, max_elapsed_s=None, first_wait_s=1.0, longest_wait_s=3.0, has_jitter=False)
    waits = [policy.for_items().wait_s(refusal(), attempt, 1e6) for attempt in range(1, 12)]
    first_stop = waits.index(None)
    assert first_stop + 1 == item_tries
    assert waits[:first_stop] == [1.0, 2.0, 3.0, 3.0][:first_stop]  # otherwise the same policy
    assert set(waits[first_stop:]) == {None}
    assert policy.max_attempts == tries


@quickly
@given(policies, st.integers(1, 50), st.floats(0.0, 300.0), st.none() | st.floats(0.0, 1e6), st.booleans())
def test_every_wait_is_within_every_bound(
    policy: RetryPolicy, attempt: int, elapsed_s: float, retry_after_s: float | None, has_answer: bool
) -> None:
    wait = policy.wait_s(refusal(retry_after_s=retry_after_s) if has_answer else UNREACHABLE, attempt, elapsed_s)
    if wait is None:
        return
    assert 0.0 <= wait <= policy.longest_wait_s
    assert policy.max_attempts is None or attempt < policy.max_attempts
    assert policy.max_elapsed_s is None or elapsed_s + wait <= policy.max_elapsed_s
    if has_answer and retry_after_s is not None:
        assert wait >= min(retry_after_s, policy.longest_wait_s)


def test_the_old_name_of_max_elapsed_s_still_works_and_warns() -> None:
    with pytest.warns(DeprecationWarning, match="max_elapsed_s"):
        policy = RetryPolicy(patience_s=7.0)
    assert policy == RetryPolicy(max_elapsed_s=7.0)
    with pytest.warns(DeprecationWarning, match="max_elapsed_s"):
        assert RetryPolicy(patience_s=None) == RetryPolicy(max_elapsed_s=None)


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_replacing_fields_of_a_policy_gives_no_warning() -> None:
    policy = RetryPolicy(max_elapsed_s=7.0)
    assert policy.for_items().max_elapsed_s == 7.0
    assert dataclasses.replace(policy, max_attempts=2) == RetryPolicy(max_attempts=2, max_elapsed_s=7.0)


def test_the_old_name_of_the_time_limit_can_be_read() -> None:
    policy = RetryPolicy(max_elapsed_s=7.0)
    with pytest.warns(DeprecationWarning, match="max_elapsed_s"):
        assert policy.patience_s == 7.0
    assert replace(policy, max_attempts=2) == RetryPolicy(max_attempts=2, max_elapsed_s=7.0)
