"""Conversations as a model reads them: rendered by its own chat template, tokenised without shared state.

One implementation for everything that puts a prompt before a model (a policy that is trained, a reward model that
judges it, the service), so that all of them read identical ids. Imports no torch; jinja2 is imported when a template
is first rendered.
"""

from redline.rendering.beginnings import Behind
from redline.rendering.chat import ChatRenderer, Literals
from redline.rendering.errors import RenderError
from redline.rendering.own_form import OwnForm
from redline.rendering.policy import POLICY_SETTINGS, PolicyPrompts, check_bare
from redline.rendering.tokenizing import Encoded, PrivateTokenizer

__all__ = [
    "POLICY_SETTINGS",
    "Behind",
    "ChatRenderer",
    "Encoded",
    "Literals",
    "OwnForm",
    "PolicyPrompts",
    "PrivateTokenizer",
    "RenderError",
    "check_bare",
]
