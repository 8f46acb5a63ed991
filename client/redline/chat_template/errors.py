"""What goes wrong when a conversation is rendered."""

from __future__ import annotations


class RenderError(ValueError):
    """A conversation cannot be rendered by the chat template; the text says why and is fit for a user."""
