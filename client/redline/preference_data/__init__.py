"""Reads rows of preference data in every accepted format as pairs, prompts or items to score. Standard library only."""
