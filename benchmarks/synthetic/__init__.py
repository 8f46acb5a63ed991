"""Policies and reward models of one world and one seed, made and judged; what ``benchmarks.claims`` is built from."""
