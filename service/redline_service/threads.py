"""Work that must not hold up the event loop, as long as the service runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """A few threads. Once they are stopped, who asks for one is cancelled, as is who waits for the model."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="redline-text")
        self._is_stopped = False

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``work(*args, **kwargs)``. Raises CancelledError once stopped."""
        if self._is_stopped:
            raise asyncio.CancelledError
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: work(*args, **kwargs))

    def stop(self) -> None:
        """Wait for what runs, and start nothing more."""
        self._is_stopped = True
        self._pool.shutdown(wait=True)
