"""A reward model on pairs that it has not seen: accuracy, length, calibration, marked errors, precision."""
