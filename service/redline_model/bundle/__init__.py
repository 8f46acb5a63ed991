"""Reward models on disk: manifest, loading, saving, and bundles derived from other bundles."""
