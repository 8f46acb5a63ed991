"""``redline``: the composition root, the one place that may see every package, and does so inside functions."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console command."""
    try:
        from redline.cli.app import run
    except ImportError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit("redline: the command line needs its extra: pip install 'redline-rm[cli]'")
    except KeyboardInterrupt:
        print("redline: interrupted", file=sys.stderr)
        sys.exit(130)
    run()
