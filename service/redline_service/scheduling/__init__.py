"""Scheduling: a fair queue of jobs, dynamic batching and the worker that runs the model. No HTTP."""
