"""Chooses float32 or bfloat16 for a CPU by timing both once per process.

A CPU with matrix units or AVX512-BF16 multiplies bfloat16 several times faster than float32; others take several times
longer, because they convert every number. There is no list of processors: both are timed.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Literal, NamedTuple

Precision = Literal["float32", "bfloat16"]
ENVIRONMENT = "REDLINE_CPU_PRECISION"
# bfloat16 has three significant digits, so it must be clearly faster
NEEDED_RATIO = 1.5
# 256 tokens through a layer of SmolLM2-135M's feed-forward network, 0.45e9 multiplications and additions
_ROWS, _INNER, _OUTER = 256, 576, 1536
# rounds at least and at most; no round begins after this many seconds
_MIN_ROUNDS, _MAX_ROUNDS, _MAX_SECONDS = 3, 40, 0.2

_lock = threading.Lock()
_cached: CPUPrecision | None = None


class CPUPrecision(NamedTuple):
    """The chosen precision and the measured speeds.

    ``float32_gflops``, ``bfloat16_gflops``: 1e9 operations per second of one thread, the fastest round; None if nothing
    was measured because the environment variable REDLINE_CPU_PRECISION is set.
    """

    chosen: Precision
    float32_gflops: float | None = None
    bfloat16_gflops: float | None = None

    def __str__(self) -> str:
        if self.float32_gflops is None or self.bfloat16_gflops is None:
            return f"the CPU computes in {self.chosen} ({ENVIRONMENT})"
        return (
            f"the CPU computes in {self.chosen} (measured: float32 {self.float32_gflops:.0f}, bfloat16 "
            f"{self.bfloat16_gflops:.0f} GFLOP/s per thread)"
        )


def cpu_precision() -> CPUPrecision:
    """The precision for this process's work on the CPU, decided at the first call.

    ``REDLINE_CPU_PRECISION`` (float32 or bfloat16) is used if it is set; else bfloat16 is chosen if it is measured to
    be ``NEEDED_RATIO`` times as fast as float32. The first call takes about 0.2 s; safe to call from several threads.

    Raises:
        ValueError: the environment variable has another value.
    """
    global _cached
    requested = os.environ.get(ENVIRONMENT)
    if requested in {"float32", "bfloat16"}:
        return CPUPrecision("bfloat16" if requested == "bfloat16" else "float32")
    if requested:
        raise ValueError(f"{ENVIRONMENT} is {requested!r}; it must be float32 or bfloat16")
    with _lock:
        if _cached is None:
            _cached = choose(*measure())
        return _cached


def choose(float32_gflops: float, bfloat16_gflops: float) -> CPUPrecision:
    """The precision for these measured speeds."""
    is_faster = bfloat16_gflops > NEEDED_RATIO * float32_gflops
    return CPUPrecision("bfloat16" if is_faster else "float32", float32_gflops, bfloat16_gflops)


def measure() -> tuple[float, float]:
    """Speed (1e9 operations per second) of a matrix product in float32 and in bfloat16; the fastest round of each.

    On one thread and in its CPU time, so that other work on the machine has little influence.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured_on_this_thread()
    finally:
        torch.set_num_threads(threads)


def _measured_on_this_thread() -> tuple[float, float]:
    import torch

    is_fine = time.get_clock_info("thread_time").resolution < 1e-4  # not on Windows
    clock = time.thread_time if is_fine else time.perf_counter
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    with torch.inference_mode():
        rows, weight = torch.ones(_ROWS, _INNER), torch.ones(_OUTER, _INNER)
        operands_by_dtype = {dtype: (rows.to(dtype), weight.to(dtype)) for dtype in best}
        for operands in operands_by_dtype.values():  # warm-up
            torch.nn.functional.linear(*operands)
        began = time.perf_counter()
        for number in range(_MAX_ROUNDS):
            if number >= _MIN_ROUNDS and time.perf_counter() - began > _MAX_SECONDS:
                break
            for dtype, operands in operands_by_dtype.items():
                started = clock()
                torch.nn.functional.linear(*operands)
                best[dtype] = min(best[dtype], clock() - started)
    operations = 2e-9 * _ROWS * _INNER * _OUTER
    return operations / best[torch.float32], operations / best[torch.bfloat16]
