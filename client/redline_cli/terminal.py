"""What commands have in common on the terminal: progress, one-line failures, quiet libraries."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from redline.errors import CommandError
from redline.text.printable import visible

# what is printed often holds text from elsewhere: brackets are no markup in it
console = Console(stderr=True, markup=False, highlight=False, emoji=False)


def is_terminal() -> bool:
    """Whether somebody sees what is printed; standard output may also be closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def write_stdout(data: bytes) -> None:
    """Write ``data`` to standard output at once. Raises OSError that names it."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def notice(text: str, *, is_warning: bool = False) -> None:
    """Print a line on standard error, whatever is in it; a warning in yellow."""
    console.print(visible(text), style="yellow" if is_warning else None, soft_wrap=True)


def say(text: str) -> None:
    """Print a line on standard output at once, whatever is in it. Raises OSError that names it."""
    try:
        print(visible(text), flush=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def need(extra: str, *modules: str) -> None:
    """Raise CommandError naming the extra to install unless every module is there."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise CommandError(f"this command needs {', '.join(missing)}: pip install 'redline-rm[{extra}]'")


def prepare_torch() -> None:
    """Settings that must stand before torch loads.

    Waiting OpenMP threads spin by default; a trainer and a service on the same cores then slow each other down
    several times over. A value that the user has set wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


class Bar:
    """A progress bar in a terminal, a line now and then elsewhere."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress = progress
        self._what = what
        self._total = total
        self._every = max(1, total // 10)
        self._task = progress.add_task(what, total=total, shown="")

    def resize(self, total: int) -> None:
        """The total became known."""
        self._total = total
        self._every = max(1, total // 10)
        self._progress.update(self._task, total=total)

    def update(self, done: int, shown: str) -> None:
        """``done`` of the total; ``shown`` are the figures beside it."""
        self._progress.update(self._task, completed=done, shown=shown)
        if not self._progress.console.is_terminal and (done % self._every == 0 or done == self._total):
            print(f"{self._what} {done}/{self._total}  {shown}", file=sys.stderr, flush=True)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Bar]:
    """A bar with figures and the time left."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress, what, total)
