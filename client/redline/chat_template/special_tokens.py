"""Special tokens that callers write in their texts: replaced during rendering, and tokenised as ordinary text.

Before a conversation is rendered, each special token in a caller's string is replaced by a short placeholder of
private-use characters, which no chat template knows. The rendered text is then split at the template's own special
tokens. A part between two of them that has a placeholder is tokenised with the caller's text restored and special
tokens off; everything else is tokenised as one text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from redline.chat_template.errors import RenderError
from redline.chat_template.stateless_tokenizer import StatelessTokenizer
from redline.chat_template.text_start import Preceding

_OPEN, _CLOSE = "\ue000", "\ue001"
_NUMBERS = re.compile(f"{_OPEN}([0-9]{{1,9}})\\.")


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON value with every string, keys too, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name) if isinstance(name, str) else name: map_strings(v, change) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_strings(element, change) for element in value]
    return value


def all_strings(value: Any) -> list[str]:
    """Every string of a JSON value, keys too."""
    strings: list[str] = []
    map_strings(value, lambda text: strings.append(text) or text)  # type: ignore[func-returns-value]
    return strings


class Placeholders:
    """Placeholders of private-use characters that occur in none of the texts of one conversation."""

    def __init__(self, texts: list[str]) -> None:
        used = {int(number) for text in texts if _OPEN in text for number in _NUMBERS.findall(text)}
        self._number = next(n for n in range(len(used) + 1) if n not in used)
        self.originals: list[str] = []
        self.pattern = re.compile(f"{_OPEN}{self._number}\\.([0-9]+){_CLOSE}")

    def add(self, text: str) -> str:
        """A new placeholder for ``text``."""
        self.originals.append(text)
        return self.code(len(self.originals) - 1)

    def code(self, name: int) -> str:
        """The placeholder with this number."""
        return f"{_OPEN}{self._number}.{name}{_CLOSE}"

    def restore(self, text: str) -> str:
        """``text`` with the placeholders replaced by their originals."""
        return self.pattern.sub(lambda match: self.originals[int(match[1])], text)


class SpecialTokens:
    """The texts of a tokenizer's special tokens, and how to tokenise text that may contain them."""

    def __init__(self, text_tokenizer: StatelessTokenizer) -> None:
        tokenizer = text_tokenizer.tokenizer
        added = list(getattr(tokenizer, "added_tokens_decoder", {}).values())
        special = [token.content for token in added if token.special]
        self.texts = sorted({*special, *map(str, tokenizer.all_special_tokens)} - {""}, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        # a special token that is matched in normalised text has other spellings
        is_normalized = any(token.special and token.normalized for token in added)
        self._normalize: Callable[[str], str] | None = text_tokenizer.normalized if is_normalized else None

    def occur_in(self, text: str) -> bool:
        """Whether a special token occurs in ``text``.

        Raises:
            RenderError: one occurs in another spelling, which the tokenizer would take for a special token.
        """
        if self.pattern.search(text):
            return True
        if self._normalize is not None and self.pattern.search(self._normalize(text)):
            raise RenderError("a text spells a special token in another way")
        return False

    def mask(self, text: str, placeholders: Placeholders) -> str:
        """``text`` with its special tokens replaced by placeholders."""
        return self.pattern.sub(lambda match: placeholders.add(match[0]), text) if self.occur_in(text) else text

    def ids(
        self, text: str, placeholders: Placeholders, tokenizer: StatelessTokenizer, *, preceding: Preceding = "nothing"
    ) -> list[int]:
        """Ids of a rendered text in which callers' special tokens are replaced.

        Args:
            text: a rendered text or a part of one.
            placeholders: those of the conversation.
            tokenizer: the tokenizer of these special tokens.
            preceding: what precedes this part.
        """
        if not placeholders.originals or not placeholders.pattern.search(text):
            return tokenizer.template_ids(text, preceding) if text else []
        ids: list[int] = []

        def preceding_now() -> Preceding:
            return tokenizer.preceding(ids) if ids else preceding

        template_text = ""  # tokenised as one text, special tokens included
        position = 0
        special_spans = [match.span() for match in self.pattern.finditer(text)]
        for start, end in [*special_spans, (len(text), len(text))]:
            part = text[position:start]
            if placeholders.pattern.search(part):
                ids += tokenizer.template_ids(template_text, preceding_now()) if template_text else []
                ids += tokenizer.user_text_ids(placeholders.restore(part), preceding_now())
                template_text = text[start:end]
            else:
                template_text += text[position:end]
            position = end
        return ids + (tokenizer.template_ids(template_text, preceding_now()) if template_text else [])
