"""Synthetic tasks with known correct answers, and the reward models and policies that are trained on them.

``benchmarks.claims`` is the command. A gold score is computed by a program from the facts of a task; no model sees it.
"""
