"""A benchmark of token rewards and rankings that any scorer with a URL can enter; ``redline bench`` runs it."""
