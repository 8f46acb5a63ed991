"""Atomic writes, file locks, and readers of JSON rows in bounded memory. Standard library only."""
