"""Rows of preference data in all their forms, read as pairs, prompts or items. Standard library only."""
