"""Alias of ``redline.http.retry``; removed in 0.2. ``from redline import RetryPolicy`` works in every version."""

from redline.http.retry import NO_RETRY as NO_RETRY
from redline.http.retry import RetryPolicy as RetryPolicy
