"""The machine and the software that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.speed.backends import SETTINGS


def machine() -> dict[str, Any]:
    """CPU, threads and versions: what a benchmark ran on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "environment": SETTINGS,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
