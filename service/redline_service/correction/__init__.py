"""Corrections in rounds: the rewrites of a request's items until each text stays the same."""
