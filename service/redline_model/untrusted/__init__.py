"""Checks of untrusted model folders before transformers reads them; risky checks run in a limited process."""
