"""The reward service: scores and corrects responses with one reward model, over HTTP."""
