"""The training losses, one formula per file; ``factory`` chooses one for a configuration."""
