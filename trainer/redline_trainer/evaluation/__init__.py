"""Evaluation of reward models on held-out pairs: accuracy, length, calibration, marked errors, precision."""
