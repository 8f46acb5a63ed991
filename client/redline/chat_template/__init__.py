"""Conversations as a model reads them: rendered by its own chat template, tokenised without shared state.

One implementation for everything that puts a prompt before a model (a policy that is trained, a reward model that
judges it, the service), so that all of them read identical ids. Imports no torch; jinja2 is imported when a template
is first rendered.
"""

from redline.chat_template.errors import RenderError
from redline.chat_template.parser import ChatTemplateParser
from redline.chat_template.policy_prompts import POLICY_SETTINGS, PolicyPrompts, check_bare
from redline.chat_template.renderer import ChatRenderer, TemplateParts
from redline.chat_template.stateless_tokenizer import Encoded, StatelessTokenizer
from redline.chat_template.text_start import Preceding

__all__ = [
    "POLICY_SETTINGS",
    "ChatRenderer",
    "ChatTemplateParser",
    "Encoded",
    "PolicyPrompts",
    "Preceding",
    "RenderError",
    "StatelessTokenizer",
    "TemplateParts",
    "check_bare",
]
