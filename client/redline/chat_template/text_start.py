"""Tokenizers that add a space at the beginning of a text, and the same tokenizers without it.

Many tokenizers put a space (or a symbol for it) in front of a text: ``Metaspace`` before the first word (``first``) or
also after every added token (``always``); ``Prepend`` and ``ByteLevel(add_prefix_space=True)`` as ``always``. A part of
a text that is tokenised separately and appended to another part must not get this space.
"""

from __future__ import annotations

import json
from typing import Any, Literal

# What precedes a text: nothing; an added token, which is split off before the rest is tokenised; other text.
Preceding = Literal["nothing", "token", "text"]
_ADDS_SPACE = ('"type":"Prepend"', '"type":"Metaspace"', '"add_prefix_space":true')


def without_leading_space(tokenizer_json: str, preceding: Preceding) -> str:
    """A tokenizer's JSON (``Tokenizer.to_str()``) changed for texts that follow ``preceding``; unchanged if equal.

    If ``preceding`` is "text", the result is right up to the first added token of a text.
    """
    if preceding == "nothing" or not any(sign in tokenizer_json for sign in _ADDS_SPACE):
        return tokenizer_json
    state = json.loads(tokenizer_json)
    parts = _parts(state["pre_tokenizer"], "pretokenizers")
    is_changed = False
    for part in parts:
        if part["type"] == "Metaspace" and part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
            is_changed = True
    if preceding == "text":
        is_changed |= _remove_prefix_space(state, parts)
    return json.dumps(state, ensure_ascii=False) if is_changed else tokenizer_json


def _remove_prefix_space(state: dict[str, Any], parts: list[dict[str, Any]]) -> bool:
    """Remove what is added before every section between added tokens; returns whether anything was removed."""
    is_changed = False
    # after another pre-tokenizer it sees words, and the space that it adds is part of each word
    for part in parts[:1]:
        if part["type"] == "Metaspace" and part.get("prepend_scheme") == "always":
            part["prepend_scheme"] = "never"
            is_changed = True
        if part["type"] == "ByteLevel" and part.get("add_prefix_space"):
            part["add_prefix_space"] = False
            is_changed = True
            for processor in _parts(state["post_processor"], "processors"):
                if "add_prefix_space" in processor:  # it removes the added space from the offsets
                    processor["add_prefix_space"] = False
    normalizers = _parts(state["normalizer"], "normalizers")
    remaining = [part for part in normalizers if part["type"] != "Prepend"]
    if len(remaining) < len(normalizers):
        state["normalizer"] = {"type": "Sequence", "normalizers": remaining} if remaining else None
        is_changed = True
    return is_changed


def _parts(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a tokenizer's component in order, with sequences expanded."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part[name] for step in _parts(inner, name)]
