"""Whether a text looks rendered by a chat template that is not known; pure, standard library only.

A prompt that was rendered by a policy's template and is taken for plain text would be scored with its markers as if a
user had written them. It is refused instead; what a text must look like for that is here.
"""

from __future__ import annotations

import re

# a special token, or one and a name (``<|assistant|>``, ``[|AI|]``, ``<|end|>GPT4 Correct Assistant:``), at the end
_TOKEN = r"(?:<[|｜][^<>|｜\s]{1,40}[|｜]?>|<[^<>|｜\s]{1,40}[|｜]>|\[[|｜][^\[\]|｜\s]{1,40}[|｜]\])"
_AFTER_TOKEN = re.compile(_TOKEN + r"(?::?\w{0,12}:?|[\w ]{1,40}:)\s*\Z")
# ``<human>: ... <bot>:``, ``<reserved_106> ... <reserved_107>``, ``[Round 1] ... [Answer]:``
_FIRST = re.compile(r"\s*(?:<([^<>\s/|]{1,40})>|\[([^\[\]\n/|]{1,40})\])")
_LAST = re.compile(r"(?:<([^<>\s/|]{1,40})>|\[([^\[\]\n/|]{1,40})\])(:?)[ \t\n]*(\w{0,12}:?)\s*\Z")
_TAG = re.compile(r"[a-zA-Z]{1,10}[1-6]?")  # of HTML, or a word in brackets
# lines that name who speaks, as a decoder leaves them that skips special tokens, or as a template in words
_ASKS = re.compile(r"^(?:#{1,4} ?)?(?:system|user|human|instruct|问)(?: ?[:：]|[ \t]*$)", re.IGNORECASE | re.MULTILINE)
_ANSWERS = re.compile(
    r"(?:\A|\n)(?:#{1,4} ?)?(?:assistant|ai|bot|chatbot|model|gpt|output|答)(?: ?[:：])?[ \t]*\n?[ \t]*\Z",
    re.IGNORECASE,
)
_END = 200  # characters at the end that can hold an opened turn


def opens_unknown_turn(text: str) -> bool:
    """Whether ``text`` ends as a chat template ends that leaves the turn to an assistant."""
    end = text.rstrip()[-_END:]
    if _AFTER_TOKEN.search(end):
        return True
    last = _LAST.search(end)
    if last is not None and _is_bracketed(text, last):
        return True
    return bool(_ANSWERS.search("\n" + end if len(end) < _END else end) and _ASKS.search(text[: len(text) - 1]))


def _is_bracketed(text: str, last: re.Match[str]) -> bool:
    first = _FIRST.match(text)
    if first is None or (first.group(1, 2) == last.group(1, 2) and not last[4]):
        return False
    name = last[1] or last[2]
    if not any(map(str.isalpha, name)):
        return False
    is_named = bool(last[3] or last[4]) or not _TAG.fullmatch(name) or name.isupper()
    return is_named and (first[1] is None) == (last[1] is None)
