"""A few threads for work that must not hold up the event loop, and that a stuck call cannot keep from ending."""

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
    """Daemon threads that work off a queue, in order.

    An executor of the standard library waits for its threads when the interpreter ends, however long their work takes;
    these threads are waited for as long as ``stop`` says and no longer.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._is_stopped = False
        self.pending = 0  # calls that wait or run; counted by the event loop
        self._threads = [threading.Thread(target=self._work, daemon=True, name=name) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``work(*args, **kwargs)`` in a thread; dropped if the caller is cancelled before it begins.

        Raises:
            CancelledError: the pool is stopped, or was stopped before the work began.
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
        """Start nothing more, and wait for what runs; False if something still runs after ``timeout_s``."""
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
            del task, future, call  # or this thread would keep the last result until the next one
