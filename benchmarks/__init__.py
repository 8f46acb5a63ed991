"""Benchmarks of speed and of quality. Each module with a ``main`` is one command that prints tables and writes JSON."""

import os

# All backends of a comparison compute in the same precision, whichever one is fastest on this CPU.
os.environ.setdefault("REDLINE_CPU_PRECISION", "float32")
