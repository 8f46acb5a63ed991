"""Policies on the open task, in which the prompt need not decide the content: ``python -m benchmarks.open_notes``."""
