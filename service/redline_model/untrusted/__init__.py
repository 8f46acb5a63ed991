"""Checks of model folders from strangers, made before transformers reads them; risky ones run in a limited process."""
