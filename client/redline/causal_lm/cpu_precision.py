"""Which precision a CPU computes in: measured once, for processors differ by a factor of ten in what bfloat16 costs.

One with matrix units or AVX512-BF16 multiplies bfloat16 several times faster than float32; one without takes several
times longer, for it converts every number. No list of processors is kept: both are tried.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Literal, NamedTuple

Precision = Literal["float32", "bfloat16"]
ENVIRONMENT = "REDLINE_CPU_PRECISION"
# bfloat16 rounds to three digits, and is taken only where it is worth that
NEEDED_RATIO = 1.5
# 256 tokens through a layer of SmolLM2-135M's feed-forward network, 0.45e9 multiplications and additions
_ROWS, _INNER, _OUTER = 256, 576, 1536
# at least so many rounds, at most so many, and none begins after so many seconds
_LEAST_ROUNDS, _MOST_ROUNDS, _SECONDS = 3, 40, 0.2

_lock = threading.Lock()
_known: CPUPrecision | None = None


class CPUPrecision(NamedTuple):
    """What was chosen and why.

    ``float32_gflops``, ``bfloat16_gflops``: 1e9 operations a second of one thread in each, the fastest of many; None
    where nothing was measured, for the environment variable REDLINE_CPU_PRECISION had decided.
    """

    chosen: Precision
    float32_gflops: float | None = None
    bfloat16_gflops: float | None = None

    def __str__(self) -> str:
        if self.float32_gflops is None or self.bfloat16_gflops is None:
            return f"the CPU computes in {self.chosen} ({ENVIRONMENT})"
        return (
            f"the CPU computes in {self.chosen} (measured: float32 {self.float32_gflops:.0f}, bfloat16 "
            f"{self.bfloat16_gflops:.0f} GFLOP/s a thread)"
        )


def cpu_precision() -> CPUPrecision:
    """The precision for this process's work on the CPU, decided at the first call.

    ``REDLINE_CPU_PRECISION`` (float32 or bfloat16) decides, if it is set; else bfloat16 is taken where it was measured
    to be ``NEEDED_RATIO`` times as fast as float32. Takes a fifth of a second once; safe to call from several threads.

    Raises:
        ValueError: the environment variable holds something else.
    """
    global _known
    asked = os.environ.get(ENVIRONMENT)
    if asked in {"float32", "bfloat16"}:
        return CPUPrecision("bfloat16" if asked == "bfloat16" else "float32")
    if asked:
        raise ValueError(f"{ENVIRONMENT} is {asked!r}; there are float32 and bfloat16")
    with _lock:
        if _known is None:
            _known = choose(*measure())
        return _known


def choose(float32_gflops: float, bfloat16_gflops: float) -> CPUPrecision:
    """The precision that these speeds speak for."""
    is_faster = bfloat16_gflops > NEEDED_RATIO * float32_gflops
    return CPUPrecision("bfloat16" if is_faster else "float32", float32_gflops, bfloat16_gflops)


def measure() -> tuple[float, float]:
    """1e9 operations a second of a matrix product in float32 and in bfloat16, in turns; the fastest of each.

    On one thread and by its own processor time, so that other work on the machine decides nothing.
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

    is_fine = time.get_clock_info("thread_time").resolution < 1e-4  # of Windows it is not
    clock = time.thread_time if is_fine else time.perf_counter
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    with torch.inference_mode():
        rows, weight = torch.ones(_ROWS, _INNER), torch.ones(_OUTER, _INNER)
        held = {dtype: (rows.to(dtype), weight.to(dtype)) for dtype in best}
        for operands in held.values():  # the first product sets things up
            torch.nn.functional.linear(*operands)
        began = time.perf_counter()
        for number in range(_MOST_ROUNDS):
            if number >= _LEAST_ROUNDS and time.perf_counter() - began > _SECONDS:
                break
            for dtype, operands in held.items():
                started = clock()
                torch.nn.functional.linear(*operands)
                best[dtype] = min(best[dtype], clock() - started)
    operations = 2e-9 * _ROWS * _INNER * _OUTER
    return operations / best[torch.float32], operations / best[torch.bfloat16]
