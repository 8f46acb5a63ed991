"""Background threads keep order, hand on errors, and do not keep an interrupted program from ending."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from redline.http.daemon_pool import DaemonThreadPool


def test_results_and_errors_come_back_in_order() -> None:
    seen: list[int] = []
    with DaemonThreadPool(1) as pool:
        futures = [pool.submit(lambda n: (seen.append(n), 10 // n)[1], n) for n in (5, 2, 0, 1)]
        assert [futures[0].result(), futures[1].result(), futures[3].result()] == [2, 5, 10]
        with pytest.raises(ZeroDivisionError):
            futures[2].result()
    assert seen == [5, 2, 0, 1]


def test_after_a_failure_no_further_task_starts() -> None:
    begun: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        time.sleep(0.02)
        return 1 // n

    with pytest.raises(ZeroDivisionError), DaemonThreadPool(2) as pool:
        for future in [pool.submit(work, n) for n in range(100)]:
            future.result()
    time.sleep(0.2)
    assert len(begun) < 20


def test_an_interrupted_program_ends_at_once() -> None:
    code = (
        "import time\nfrom redline.http.daemon_pool import DaemonThreadPool\n"
        "with DaemonThreadPool(2) as pool:\n    pool.submit(time.sleep, 60)\n    raise SystemExit(3)"
    )
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3
    assert time.monotonic() - started < 20
