"""Commands that are run as a person runs them: with a terminal as standard input."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time


def run_on_terminal(*arguments: str) -> tuple[int, str, str, float, int]:
    """Run the command with a pseudo-terminal as standard input: status, output, terminal, seconds, peak in MiB."""
    controller, terminal = os.openpty()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", "from redline.cli import main; main()", *arguments],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        took = time.monotonic() - started
        os.set_blocking(controller, False)
        try:
            shown = os.read(controller, 10_000).decode()
        except BlockingIOError:
            shown = ""
    finally:
        timer.cancel()
        os.close(terminal)
        os.close(controller)
    return process.returncode, output, shown, took, usage.ru_maxrss // 1024
