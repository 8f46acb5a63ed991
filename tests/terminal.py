"""Commands that are run as a person runs them: with a terminal as standard input."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path


def run_on_terminal(*arguments: str) -> tuple[int, str, str, float, int]:
    """Run the command with a pseudo-terminal as standard input: status, output, terminal, seconds, peak in MiB."""
    controller, terminal = os.openpty()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", "from redline_cli import main; main()", *arguments],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    timer = threading.Timer(60, process.kill)
    timer.start()
    peak = 0
    is_over = threading.Event()

    def watch() -> None:
        # what wait4 reports counts the process that forked, too
        nonlocal peak
        while not is_over.wait(0.05):
            match = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            peak = max(peak, int(match[1]) // 1024 if match else 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert process.stdout is not None
        output = process.stdout.read()
        is_over.set()
        watcher.join()
        process.wait(60)
        process.stdout.close()
        took = time.monotonic() - started
        os.set_blocking(controller, False)
        try:
            terminal_output = os.read(controller, 10_000).decode()
        except BlockingIOError:
            terminal_output = ""
    finally:
        is_over.set()
        timer.cancel()
        os.close(terminal)
        os.close(controller)
    return process.returncode, output, terminal_output, took, peak
