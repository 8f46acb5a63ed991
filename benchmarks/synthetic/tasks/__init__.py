"""The synthetic tasks: prompts whose correct answers are known, biased annotators, and a gold score."""
