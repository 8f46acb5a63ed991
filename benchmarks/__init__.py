"""Measurements of speed; each module with a ``main`` is one command that prints a table and writes JSON."""

import os

# contenders are held against each other in one precision, whatever a machine is good at
os.environ.setdefault("REDLINE_CPU_PRECISION", "float32")
