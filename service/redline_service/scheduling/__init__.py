"""From many requests to full forward passes: queue, fairness, batches, one worker. No HTTP, no tensors."""
