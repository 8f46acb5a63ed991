"""Terminal output of the commands: lines, warnings, progress bars; and quiet libraries."""

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

# printed text often comes from files or services: brackets in it are not markup
console = Console(stderr=True, markup=False, highlight=False, emoji=False)


def is_terminal() -> bool:
    """Whether standard output is a terminal; it may also be closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def write_stdout(data: bytes) -> None:
    """Write ``data`` to standard output at once. Raises OSError naming standard output."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def notice(text: str, *, is_warning: bool = False) -> None:
    """Print a line on standard error, control characters made visible; a warning in yellow."""
    console.print(visible(text), style="yellow" if is_warning else None, soft_wrap=True)


def print_line(text: str) -> None:
    """Print a line on standard output at once, control characters made visible.

    Raises OSError naming standard output.
    """
    try:
        print(visible(text), flush=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def require_modules(extra: str, *modules: str) -> None:
    """Raise CommandError naming the extra to install, unless every module is installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise CommandError(f"this command needs {', '.join(missing)}: pip install 'redline-rm[{extra}]'")


def prepare_torch() -> None:
    """Settings that must be made before torch is imported.

    Waiting OpenMP threads spin by default; a trainer and a service on the same cores then slow each other down
    several times over. A value that the user has set is kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


class Bar:
    """A progress bar in a terminal; elsewhere a line at every tenth of the total."""

    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self._progress = progress
        self._label = label
        self._total = total
        self._every = max(1, total // 10)
        self._task = progress.add_task(label, total=total, figures="")

    def resize(self, total: int) -> None:
        """Set the total once it is known."""
        self._total = total
        self._every = max(1, total // 10)
        self._progress.update(self._task, total=total)

    def update(self, done: int, figures: str) -> None:
        """Show ``done`` of the total, followed by ``figures``."""
        self._progress.update(self._task, completed=done, figures=figures)
        if not self._progress.console.is_terminal and (done % self._every == 0 or done == self._total):
            print(f"{self._label} {done}/{self._total}  {figures}", file=sys.stderr, flush=True)


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Bar]:
    """A progress bar with figures and the remaining time."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress, label, total)
