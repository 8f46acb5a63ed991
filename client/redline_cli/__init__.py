"""The ``redline`` command line. It may import every package of the repository, and does so inside functions."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

_DEFAULTS: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def main() -> None:
    """Entry point of the console command."""
    # The command's modules take a while to load. Until it sets its own handlers, no file is open, so a signal ends the
    # process at once; an exception could be swallowed by a module that is being imported.
    handled = [number for number, default in _DEFAULTS.items() if signal.getsignal(number) is default]
    for number in handled:
        signal.signal(number, _exit_on_signal)
    try:
        from redline_cli.app import run
    except ImportError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit("redline: the command line needs its extra: pip install 'redline-rm[cli]'")
    for number in handled:
        signal.signal(number, _DEFAULTS[number])
    run()


def _exit_on_signal(number: int, frame: object) -> None:
    try:
        os.write(2, b"redline: interrupted\n" if number == signal.SIGINT else b"redline: terminated\n")
    finally:
        os._exit(128 + number)
