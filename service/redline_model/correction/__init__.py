"""Rewrites of responses by the reward model, and the edits between two texts."""
