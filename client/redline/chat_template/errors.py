"""The error of rendering a conversation."""

from __future__ import annotations


class RenderError(ValueError):
    """A conversation cannot be rendered by the chat template; the message is fit for a user."""
