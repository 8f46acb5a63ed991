"""A tokenizer of a stranger's folder at work: what it raises and how much it answers is bounded by a named error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from redline.chat_template import Encoded, StatelessTokenizer
from redline_model.errors import TokenizerError
from redline_model.untrusted.bounded_json import one_line
from redline_model.untrusted.panics import PanicError, panics_as_errors
from redline_model.untrusted.tokenizer_check import SPARE_TOKENS, TOKENS_PER_CHARACTER

T = TypeVar("T")


class GuardedTokenizer(StatelessTokenizer):
    """Private copies of a stranger's tokenizer.

    Every method raises TokenizerError where it fails on its text or ids, or gives more than 64 tokens for a character
    and 1000 beyond that.
    """

    def guarded(self, work: Callable[[], Encoded], characters: int) -> Encoded:
        """See ``StatelessTokenizer``."""
        encoded = _named(work, "this text")
        if len(encoded.ids) > TOKENS_PER_CHARACTER * characters + SPARE_TOKENS:
            raise TokenizerError(f"the tokenizer makes {len(encoded.ids)} tokens of {characters} characters")
        return encoded

    def normalized(self, text: str) -> str:
        """See ``StatelessTokenizer``."""
        return _named(lambda: super(GuardedTokenizer, self).normalized(text), "this text")

    def around(self, texts: int = 1) -> list[list[int]]:
        """See ``StatelessTokenizer``."""
        return _named(lambda: super(GuardedTokenizer, self).around(texts), "a text of one letter")

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """See ``StatelessTokenizer``."""
        return _named(
            lambda: super(GuardedTokenizer, self).decode(ids, skip_special_tokens=skip_special_tokens), "these ids"
        )


def _named(work: Callable[[], T], what: str) -> T:
    try:
        with panics_as_errors("the tokenizer"):
            return work()
    except (MemoryError, RecursionError):
        raise
    except PanicError as error:
        raise TokenizerError(str(error)) from error
    except Exception as error:  # a bare Exception from Rust among others
        raise TokenizerError(f"the tokenizer fails on {what}: {one_line(error)}") from error
