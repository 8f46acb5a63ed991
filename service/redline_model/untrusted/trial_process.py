"""Run a check of an untrusted file in its own process, with limits that can only end that process.

The caller uses ``run_trial``. The other side is this file run as a script, ``python trial_process.py SCRIPT``: it reads
the task as JSON from standard input, limits itself, calls the script's ``trial(task)`` and writes the result as JSON.
Both sides import only the standard library, so that a trial starts within a few hundredths of a second.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_MAX_RESULT_CHARACTERS = 2**25


class Limits(NamedTuple):
    """Limits of a trial: seconds of processor time, seconds of wall-clock time, bytes of address space."""

    cpu_s: int
    wall_s: float
    memory_bytes: int


class TrialError(Exception):
    """A trial did not finish; the message gives the reason as a clause about "it"."""


def run_trial(script: Path, task: Mapping[str, Any], limits: Limits) -> Any:
    """The result of ``trial(task)`` of ``script``; task and result are JSON values.

    Args:
        script: a file that imports neither this package nor anything that takes long to import.

    Raises:
        TrialError: it reached a limit, crashed or raised an exception.
    """
    request = {"path": sys.path, "cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes, "task": task}
    try:
        process = subprocess.run(
            [sys.executable, "-I", "-S", str(Path(__file__)), str(script)],
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Rust libraries write a long report there when they panic
            text=True,
            encoding="utf-8",
            timeout=limits.wall_s,
            check=False,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"},
        )
    except subprocess.TimeoutExpired:
        raise TrialError(f"it was not done after {limits.wall_s:.0f} seconds") from None
    except (OSError, ValueError) as error:
        raise TrialError(f"the process that tries it cannot be started: {error}") from error
    if process.returncode != 0 or not 0 < len(process.stdout) <= _MAX_RESULT_CHARACTERS:
        limits_text = f"within {limits.cpu_s} seconds and {limits.memory_bytes // 2**20} MiB"
        raise TrialError(f"it was not done {limits_text}, or crashed the process that tried it")
    result: dict[str, Any] = json.loads(process.stdout)
    if "failed" in result:
        raise TrialError(result["failed"])
    return result["verdict"]


def _limit_process(cpu_s: int, memory_bytes: int) -> None:
    """Limit this process's processor time and address space, if the system supports it."""
    try:
        import resource
    except ImportError:  # Windows: only the caller's time limit applies
        return
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main() -> None:
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    result: dict[str, Any]
    try:
        trial = runpy.run_path(sys.argv[1])["trial"]
        _limit_process(request["cpu_s"], request["memory_bytes"])
        result = {"verdict": trial(request["task"])}
    except MemoryError:
        result = {"failed": "it takes too much memory"}
    except RecursionError:
        result = {"failed": "it is nested too deep or calls itself without end"}
    except BaseException as error:  # a panic of a Rust library is not an Exception
        result = {"failed": f"it cannot be read: {type(error).__name__}: {str(error)[:1000]}"}
    json.dump(result, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # freeing the memory in the ordinary way would take as long as reading the file


if __name__ == "__main__":
    _main()
