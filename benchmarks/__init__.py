"""Measurements of speed; each module with a ``main`` is one command that prints a table and writes JSON."""
