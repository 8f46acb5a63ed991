"""Trains reward models on preference pairs and writes them as bundles."""
