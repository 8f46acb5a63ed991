"""A tokenizer from an untrusted folder: its exceptions and oversized results become TokenizerError."""

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
    """Private copies of an untrusted tokenizer.

    Every method raises TokenizerError if the tokenizer fails on its text or ids, or makes more tokens of a text than
    64 per character and 1000 more.
    """

    def guarded(self, work: Callable[[], Encoded], characters: int) -> Encoded:
        """See ``StatelessTokenizer``."""
        encoded = _call(work, "this text")
        if len(encoded.ids) > TOKENS_PER_CHARACTER * characters + SPARE_TOKENS:
            raise TokenizerError(f"the tokenizer makes {len(encoded.ids)} tokens of {characters} characters")
        return encoded

    def normalized(self, text: str) -> str:
        """See ``StatelessTokenizer``."""
        return _call(lambda: super(GuardedTokenizer, self).normalized(text), "this text")

    def special_ids_around(self, texts: int = 1) -> list[list[int]]:
        """See ``StatelessTokenizer``."""
        return _call(lambda: super(GuardedTokenizer, self).special_ids_around(texts), "a text of one letter")

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """See ``StatelessTokenizer``."""
        return _call(
            lambda: super(GuardedTokenizer, self).decode(ids, skip_special_tokens=skip_special_tokens), "these ids"
        )


def _call(work: Callable[[], T], what: str) -> T:
    try:
        with panics_as_errors("the tokenizer"):
            return work()
    except (MemoryError, RecursionError):
        raise
    except PanicError as error:
        raise TokenizerError(str(error)) from error
    except Exception as error:  # libraries in Rust raise bare Exceptions
        raise TokenizerError(f"the tokenizer fails on {what}: {one_line(error)}") from error
