"""Request and response formats of other frameworks: compatible endpoints for RL loops and inference clients."""
