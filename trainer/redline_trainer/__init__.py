"""Preference pairs in, a bundle out."""
