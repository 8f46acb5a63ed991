"""The forward pass: shared prompts, packed sequences, prefix cache, logits at target positions only."""
