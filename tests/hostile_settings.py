"""Hostile and harmless changes to the small files of a bundle: settings of the tokenizer, chat templates and others."""

from __future__ import annotations

import json
from pathlib import Path

from tests.damage import Damage, file, in_order, json_file, update_digests

SETTINGS = "tokenizer_config.json"
_MILLIONS_OF_LISTS = '{"a":[' + "[]," * 2_500_000 + "[]]}"


def settings(**fields: object) -> Damage:
    """Changes settings of the tokenizer."""
    return json_file(SETTINGS, **fields)


def template_in_settings(value: object) -> Damage:
    """Moves the chat template from its own file to the tokenizer's settings."""
    return in_order(lambda folder: (folder / "chat_template.jinja").unlink(), settings(chat_template=value))


def many_templates(folder: Path) -> None:
    """Adds a thousand additional chat templates."""
    (folder / "additional_chat_templates").mkdir()
    for number in range(1000):
        (folder / f"additional_chat_templates/t{number}.jinja").write_text("{{ messages[0].content }}")
    update_digests(folder)


HOSTILE_SETTINGS: dict[str, Damage] = {
    "invalid padding side": settings(padding_side="up"),
    "slow tokenizer class": settings(tokenizer_class="ByT5Tokenizer"),
    "slow tokenizer class with 10**9 extra ids": settings(tokenizer_class="ByT5Tokenizer", extra_ids=10**9),
    "10**8 extra ids": settings(tokenizer_class="T5Tokenizer", extra_ids=10**8),
    "offset of 10**8": settings(tokenizer_class="PegasusTokenizer", offset=10**8),
    "tokenizer that is an object": settings(tokenizer_object={"a": 1}),
    "added tokens that are a list": settings(added_tokens_decoder=[1, 2]),
    "added tokens that are numbers": settings(added_tokens_decoder={"a": 1}),
    "nested extra tokens": settings(extra_special_tokens={"a": {"b": ["c"] * 1000}}),
    "settings of millions of lists": file(SETTINGS, _MILLIONS_OF_LISTS),
    "invalid description of the end token": file("special_tokens_map.json", '{"eos_token": {"content": ["a"]}}'),
    "generation config of millions of lists": file("generation_config.json", _MILLIONS_OF_LISTS),
    "generation config of a million end tokens": file(
        "generation_config.json", json.dumps({"eos_token_id": [1] * 10**6})
    ),
    "generation config with objects as ids": file(
        "generation_config.json", '{"eos_token_id": "a", "pad_token_id": {}}'
    ),
    "chat template that is a number": template_in_settings(7),
    "chat templates with a power": template_in_settings([{"name": "default", "template": "{{ 9**9**9 }}"}]),
    "chat templates that are numbers": template_in_settings([1, 2]),
    "chat template that is not UTF-8": file("chat_template.jinja", b"\xff\xfe"),
    "a thousand additional chat templates": many_templates,
    "additional chat template of 5 MB": file("additional_chat_templates/tool.jinja", "a" * 5_000_000),
    "additional chat template with a power": file("additional_chat_templates/tool.jinja", "{{ 9**9**9 }}"),
}

HARMLESS_SETTINGS: dict[str, Damage] = {
    "maximum length that is a text": settings(model_max_length="many"),
    "maximum length that is a list": settings(model_max_length=[1]),
    "maximum length of 10**400": settings(model_max_length=10**400),
    "maximum length of -1": settings(model_max_length=-1),
    "constructor arguments": settings(init_inputs=[1, 2, 3]),
    "paths of other files": settings(name_or_path="../../etc", vocab_file="/etc/passwd", tokenizer_file="/etc/passwd"),
    "path of GGUF weights": settings(gguf_file="/etc/passwd"),
    "length of 10**400 in the generation config": file("generation_config.json", json.dumps({"max_length": 10**400})),
}
