"""Reward models on real preference sets: ``python -m benchmarks.real_text``."""
