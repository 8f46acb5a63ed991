"""Work on a stranger's file in a process of its own, within limits that end that process alone.

The caller's side is ``run_trial``. The other side is this file run as a script, ``python trial_process.py SCRIPT``: it
reads the task as JSON from standard input, limits itself, calls the script's ``trial(task)`` and writes what that gives
as JSON. Both sides import nothing but the standard library, so that a trial starts within a few hundredths of a second.
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

_MAX_ANSWER_CHARACTERS = 2**25


class Limits(NamedTuple):
    """What a trial may take: seconds of processor time, seconds in all, bytes of address space."""

    cpu_s: int
    wall_s: float
    memory_bytes: int


class TrialError(Exception):
    """A trial came to no end of its own; the message says why, as a clause about "it"."""


def run_trial(script: Path, task: Mapping[str, Any], limits: Limits) -> Any:
    """What ``trial(task)`` of ``script`` gives, both as JSON.

    Args:
        script: a file that imports neither this package nor what starts slowly.

    Raises:
        TrialError: it reached a limit, crashed or raised an exception.
    """
    whole = {"path": sys.path, "cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes, "task": task}
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-S", str(Path(__file__)), str(script)],
            input=json.dumps(whole),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libraries in Rust write a page there for a panic
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
    if ended.returncode != 0 or not 0 < len(ended.stdout) <= _MAX_ANSWER_CHARACTERS:
        within = f"within {limits.cpu_s} seconds and {limits.memory_bytes // 2**20} MiB"
        raise TrialError(f"it was not done {within}, or crashed the process that tried it")
    answer: dict[str, Any] = json.loads(ended.stdout)
    if "failed" in answer:
        raise TrialError(answer["failed"])
    return answer["verdict"]


def _limit_process(cpu_s: int, memory_bytes: int) -> None:
    """Bound this process's processor time and address space, where the system can."""
    try:
        import resource
    except ImportError:  # Windows; the caller's time limit is left
        return
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main() -> None:
    whole = json.load(sys.stdin)
    sys.path[:] = whole["path"]
    answer: dict[str, Any]
    try:
        trial = runpy.run_path(sys.argv[1])["trial"]
        _limit_process(whole["cpu_s"], whole["memory_bytes"])
        answer = {"verdict": trial(whole["task"])}
    except MemoryError:
        answer = {"failed": "it takes too much memory"}
    except RecursionError:
        answer = {"failed": "it is nested too deep or calls itself without end"}
    except BaseException as error:  # a panic of a library in Rust is no Exception
        answer = {"failed": f"it cannot be read: {type(error).__name__}: {str(error)[:1000]}"}
    json.dump(answer, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # to free what was read would take as long as to read it


if __name__ == "__main__":
    _main()
