"""Callers' text that spells a special token: put out of the way while a template is rendered, and read as text.

Each place where a caller's string spells a special token is replaced by a short code of private-use characters, which
no chat template knows. The rendered text is then cut at its own special tokens; a part between two of them that holds
a code is read with the caller's text put back and special tokens off, everything else as one text.
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


def mapped_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON value with every string, keys too, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name) if isinstance(name, str) else name: mapped_strings(v, change) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [mapped_strings(one, change) for one in value]
    return value


def strings_of(value: Any) -> list[str]:
    """Every string of a JSON value, keys too."""
    found: list[str] = []
    mapped_strings(value, lambda text: found.append(text) or text)  # type: ignore[func-returns-value]
    return found


class Marks:
    """Private-use codes that are in none of the texts of one conversation."""

    def __init__(self, texts: list[str]) -> None:
        taken = {int(number) for text in texts if _OPEN in text for number in _NUMBERS.findall(text)}
        self._number = next(n for n in range(len(taken) + 1) if n not in taken)
        self.held: list[str] = []
        self.pattern = re.compile(f"{_OPEN}{self._number}\\.([0-9]+){_CLOSE}")

    def hold(self, text: str) -> str:
        """A code that stands for ``text``."""
        self.held.append(text)
        return self.code(len(self.held) - 1)

    def code(self, name: int) -> str:
        """A code of a number."""
        return f"{_OPEN}{self._number}.{name}{_CLOSE}"

    def restored(self, text: str) -> str:
        """``text`` with what the codes stand for."""
        return self.pattern.sub(lambda found: self.held[int(found[1])], text)


class SpecialTokens:
    """The texts of a tokenizer's special tokens."""

    def __init__(self, texts: StatelessTokenizer) -> None:
        tokenizer = texts.tokenizer
        added = list(getattr(tokenizer, "added_tokens_decoder", {}).values())
        special = [token.content for token in added if token.special]
        self.texts = sorted({*special, *map(str, tokenizer.all_special_tokens)} - {""}, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        # a special token that is looked for in normalised text can be spelt in other ways
        is_normalized = any(token.special and token.normalized for token in added)
        self._normalize: Callable[[str], str] | None = texts.normalized if is_normalized else None

    def are_in(self, text: str) -> bool:
        """Whether ``text`` spells one.

        Raises:
            RenderError: it spells one in another way, which the tokenizer would read as one.
        """
        if self.pattern.search(text):
            return True
        if self._normalize is not None and self.pattern.search(self._normalize(text)):
            raise RenderError("a text spells a special token in another way")
        return False

    def hide(self, text: str, marks: Marks) -> str:
        """``text`` with codes in the places of special tokens."""
        return self.pattern.sub(lambda found: marks.hold(found[0]), text) if self.are_in(text) else text

    def ids(
        self, text: str, marks: Marks, tokenizer: StatelessTokenizer, *, behind: Preceding = "nothing"
    ) -> list[int]:
        """Ids of a rendered text in which callers' special tokens are hidden.

        Args:
            text: a rendered text or a piece of one.
            marks: codes of what is hidden.
            tokenizer: that of these special tokens.
            behind: what stands before the piece.
        """
        if not marks.held or not marks.pattern.search(text):
            return tokenizer.template_ids(text, behind) if text else []
        ids: list[int] = []

        def place() -> Preceding:
            return tokenizer.behind(ids) if ids else behind

        own = ""  # what is read as one text, special tokens included
        at = 0
        borders = [found.span() for found in self.pattern.finditer(text)]
        for start, end in [*borders, (len(text), len(text))]:
            part = text[at:start]
            if marks.pattern.search(part):
                ids += tokenizer.template_ids(own, place()) if own else []
                ids += tokenizer.user_text_ids(marks.restored(part), place())
                own = text[start:end]
            else:
                own += text[at:end]
            at = end
        return ids + (tokenizer.template_ids(own, place()) if own else [])
