"""What a tokenizer does to the beginning of a text, and the same tokenizer without it.

Many put a space (or its sign) before a text: ``Metaspace`` before the very first piece (``first``) or behind every
token that was cut out (``always``), ``Prepend`` and ``ByteLevel(add_prefix_space=True)`` likewise always. A piece that
is tokenised apart and put behind another must not get it.
"""

from __future__ import annotations

import json
from typing import Any, Literal

# What stands before a piece: nothing; an added token, which is cut out before the rest is read; other text.
Preceding = Literal["nothing", "token", "text"]
_SIGNS = ('"type":"Prepend"', '"type":"Metaspace"', '"add_prefix_space":true')


def without_beginning(written: str, behind: Preceding) -> str:
    """A tokenizer's JSON (``Tokenizer.to_str()``) whose texts stand behind something; the same text if nothing differs.

    Right for what stands before the first added token of a text where ``behind`` is "text".
    """
    if behind == "nothing" or not any(sign in written for sign in _SIGNS):
        return written
    state = json.loads(written)
    parts = _parts(state["pre_tokenizer"], "pretokenizers")
    is_changed = False
    for part in parts:
        if part["type"] == "Metaspace" and part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
            is_changed = True
    if behind == "text":
        is_changed |= _without_prefix(state, parts)
    return json.dumps(state, ensure_ascii=False) if is_changed else written


def _without_prefix(state: dict[str, Any], parts: list[dict[str, Any]]) -> bool:
    """Take off what is put before every section between added tokens; whether there was any."""
    is_changed = False
    # one that stands behind another pre-tokenizer sees words, and what it puts before each is part of the word
    for part in parts[:1]:
        if part["type"] == "Metaspace" and part.get("prepend_scheme") == "always":
            part["prepend_scheme"] = "never"
            is_changed = True
        if part["type"] == "ByteLevel" and part.get("add_prefix_space"):
            part["add_prefix_space"] = False
            is_changed = True
            for processor in _parts(state["post_processor"], "processors"):
                if "add_prefix_space" in processor:  # it leaves the space that was added out of the offsets
                    processor["add_prefix_space"] = False
    normalizers = _parts(state["normalizer"], "normalizers")
    kept = [part for part in normalizers if part["type"] != "Prepend"]
    if len(kept) < len(normalizers):
        state["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
        is_changed = True
    return is_changed


def _parts(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The parts of a tokenizer's step in their order, sequences opened."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [one for inner in part[name] for one in _parts(inner, name)]
