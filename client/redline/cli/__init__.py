"""``redline``: the composition root, the one place that may see every package, and does so inside functions."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Entry point of the console command."""
    # Until the command has handlers of its own, nothing is open that would have to be closed: it just ends. Its modules
    # take a while to load, and what they import may swallow an exception.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, _interrupted)
    try:
        from redline.cli.app import run
    except ImportError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit("redline: the command line needs its extra: pip install 'redline-rm[cli]'")
    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _interrupted(number: int, frame: object) -> None:
    try:
        os.write(2, b"redline: interrupted\n")
    finally:
        os._exit(130)
