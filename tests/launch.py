"""Start a command as a shell in the foreground would, whatever started the tests: ``python launch.py COMMAND...``.

Signals have their default effect (a background job of a script ignores SIGINT, and what it starts inherits that). With
``--fsize N`` no file that is written may grow beyond N bytes: the write then fails, as on a full disk, with EFBIG.
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
