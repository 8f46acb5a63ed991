"""Chat templates in the styles of common model families, and tokenizers that have them."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from tests.tokenizer_families import TOKENIZERS, tokenizer_of


class Style(NamedTuple):
    """A template. ``special``: its special tokens. ``has_system``: whether it accepts a system turn."""

    template: str
    special: tuple[str, ...] = ()
    has_system: bool = True
    uses_tools: bool = False


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEADERS = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
STYLES: dict[str, Style] = {
    "chatml": Style(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "chatml of plain text": Style(_CHATML),
    "default system": Style(
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + _CHATML,
        ("<|im_start|>", "<|im_end|>"),
    ),
    "trimmed and dated": Style(
        "<s>{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{% if messages[0].role == 'system' %}{% set said = messages[0].content | trim %}"
        "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
        "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n{{ said }}<|eot_id|>"
        "{% for m in messages %}" + _HEADERS + "{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "always today": Style(
        "<|im_start|>system\n{{ strftime_now('%Y-%m-%d') }}<|im_end|>\n" + _CHATML, ("<|im_start|>", "<|im_end|>")
    ),
    "inst": Style(
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content.strip() }} </s>"
        "{% else %}{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}",
        ("<s>",),
        has_system=False,
    ),
    "inst without spaces": Style(
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% elif m.role == 'system' %}[SYSTEM]{{ m.content }}[/SYSTEM]{% else %}{{ m.content }}</s>{% endif %}"
        "{% endfor %}",
        ("<s>", "[INST]", "[/INST]", "[SYSTEM]", "[/SYSTEM]"),
    ),
    "turns of a model": Style(
        "<s>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<s>", "<start_of_turn>", "<end_of_turn>"),
    ),
    "thoughts": Style(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
        "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
    "named": Style(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "bracketed": Style(
        "{% for m in messages %}[|{{ m.role }}|]{{ m.content }}{% if m.role == 'user' %}\n{% else %}[|endofturn|]\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}[|assistant|]{% endif %}"
    ),
    "words": Style(
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}"
        "USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "headings": Style(
        "{% for m in messages %}### {{ m.role.capitalize() }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
    "marked as generated": Style(
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
    "tools": Style(
        "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}\n"
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        uses_tools=True,
    ),
}
FAMILIES = [(tokenizer, style) for tokenizer in TOKENIZERS for style in [*STYLES, None]]


def with_template(tokenizer: str, style: str | None) -> Any:
    """A tokenizer of the family with the template of the style; without a template if the style is None."""
    copied = copy.deepcopy(tokenizer_of(tokenizer))
    copied.chat_template = None
    if style is not None:
        copied.add_special_tokens({"additional_special_tokens": list(STYLES[style].special)})
        copied.chat_template = STYLES[style].template
    return copied
