"""A pool of daemon threads. Unlike an executor's threads, they do not delay the end of an interrupted program."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

R = TypeVar("R")


class DaemonThreadPool:
    """Daemon threads that process a queue in order. Use ``with``; leaving the block does not wait for the tasks."""

    def __init__(self, threads: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads = threads
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True, name="redline-background").start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # cancel tasks that have not started
            with suppress(queue.Empty):
                while True:
                    task = self._tasks.get_nowait()
                    if task is not None:
                        task[0].cancel()
        for _ in range(self._threads):
            self._tasks.put(None)

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        """Run ``function(*arguments)`` when a thread is free."""
        future: Future[R] = Future()
        self._tasks.put((future, lambda: function(*arguments)))
        return future

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
