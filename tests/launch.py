"""Start a command as a shell does in the foreground: ``python launch.py COMMAND...``.

Signals get their default handlers (background jobs ignore SIGINT, and child processes inherit that). With ``--fsize N``
writes beyond N bytes per file fail with EFBIG, similar to a full disk.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

if __name__ == "__main__":
    arguments = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if arguments[0] == "--fsize":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(arguments[1]), resource.RLIM_INFINITY))
        arguments = arguments[2:]
    os.execv(arguments[0], arguments)
