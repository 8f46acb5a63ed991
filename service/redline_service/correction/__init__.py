"""Corrections in rounds: each response is rewritten until its text stays the same."""
