"""Chat templates: conversations rendered with a model's own template and tokenised without shared state.

Everything that gives a prompt to a model uses this package (training a policy, scoring it with a reward model, the
service), so that all of them get identical ids. Imports no torch; jinja2 is imported when a template is first rendered.
"""

from redline.chat_template.errors import RenderError
from redline.chat_template.parser import ChatTemplateParser
from redline.chat_template.policy_prompts import POLICY_SETTINGS, PolicyPrompts, check_plain
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
    "check_plain",
]
