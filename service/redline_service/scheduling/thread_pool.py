"""Threads for work that must not block the event loop. A call that never ends cannot keep the process alive."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

from redline_model.untrusted.panics import panics_as_errors

P = ParamSpec("P")
R = TypeVar("R")


class ThreadPool:
    """Daemon threads that run calls in the order in which they were queued.

    An executor of the standard library waits for its threads when the interpreter exits, however long their calls take.
    This pool waits for at most the ``timeout_s`` of ``stop``.

    ``pending``: number of calls that wait or run. Use the pool from one event loop only.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._is_stopped = False
        self.pending = 0
        self._threads = [threading.Thread(target=self._work, daemon=True, name=name) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``work(*args, **kwargs)`` in a thread; the call is dropped if its caller is cancelled before it starts.

        Raises:
            CancelledError: the pool is stopped, or was stopped before the call started.
        """
        if self._is_stopped:
            raise asyncio.CancelledError
        future: Future[R] = Future()
        self._tasks.put((future, lambda: work(*args, **kwargs)))
        self.pending += 1
        try:
            return await asyncio.wrap_future(future)
        finally:
            self.pending -= 1

    def stop(self, timeout_s: float) -> bool:
        """Cancel queued calls and wait for running ones; False if one still runs after ``timeout_s``."""
        self._is_stopped = True
        try:
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    task[0].cancel()
        except queue.Empty:
            pass
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if future.set_running_or_notify_cancel():
                try:
                    with panics_as_errors("the work"):
                        future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del task, future, call  # otherwise the thread would keep the last result in memory until the next call
