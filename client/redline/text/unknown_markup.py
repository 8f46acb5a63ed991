"""Detects prompts that were rendered by an unknown chat template; pure, standard library only.

If such a prompt were treated as plain text, its markers would be scored as if the user had written them. So it is
refused; the patterns are heuristics.
"""

from __future__ import annotations

import re

# a special token at the end, optionally with a name: ``<|assistant|>``, ``[|AI|]``, ``<|end|>GPT4 Correct Assistant:``
_TOKEN = r"(?:<[|｜][^<>|｜\s]{1,40}[|｜]?>|<[^<>|｜\s]{1,40}[|｜]>|\[[|｜][^\[\]|｜\s]{1,40}[|｜]\])"
_AFTER_TOKEN = re.compile(_TOKEN + r"(?::?\w{0,12}:?|[\w ]{1,40}:)\s*\Z")
# ``<human>: ... <bot>:``, ``<reserved_106> ... <reserved_107>``, ``[Round 1] ... [Answer]:``
_FIRST = re.compile(r"\s*(?:<([^<>\s/|]{1,40})>|\[([^\[\]\n/|]{1,40})\])")
_LAST = re.compile(r"(?:<([^<>\s/|]{1,40})>|\[([^\[\]\n/|]{1,40})\])(:?)[ \t\n]*(\w{0,12}:?)\s*\Z")
_TAG = re.compile(r"[a-zA-Z]{1,10}[1-6]?")  # an HTML tag, or a word in brackets
# lines with the speaker's name, as in templates of plain words, or after a decoder has skipped special tokens
_USER_LINE = re.compile(
    r"^(?:#{1,4} ?)?(?:system|user|human|instruct|问)(?: ?[:：]|[ \t]*$)", re.IGNORECASE | re.MULTILINE
)
_ASSISTANT_LINE = re.compile(
    r"(?:\A|\n)(?:#{1,4} ?)?(?:assistant|ai|bot|chatbot|model|gpt|output|答)(?: ?[:：])?[ \t]*\n?[ \t]*\Z",
    re.IGNORECASE,
)
_END = 200  # characters at the end that are searched


def ends_with_unknown_turn(text: str) -> bool:
    """Whether ``text`` ends like the open assistant turn of an unknown chat template."""
    end = text.rstrip()[-_END:]
    if _AFTER_TOKEN.search(end):
        return True
    last = _LAST.search(end)
    if last is not None and _is_bracketed(text, last):
        return True
    return bool(
        _ASSISTANT_LINE.search("\n" + end if len(end) < _END else end) and _USER_LINE.search(text[: len(text) - 1])
    )


def _is_bracketed(text: str, last: re.Match[str]) -> bool:
    first = _FIRST.match(text)
    if first is None or (first.group(1, 2) == last.group(1, 2) and not last[4]):
        return False
    name = last[1] or last[2]
    if not any(map(str.isalpha, name)):
        return False
    is_named = bool(last[3] or last[4]) or not _TAG.fullmatch(name) or name.isupper()
    return is_named and (first[1] is None) == (last[1] is None)
