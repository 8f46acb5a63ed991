"""Text to ids with a fast tokenizer, without the state that ``tokenizer(text)`` changes.

A call of a transformers tokenizer sets truncation, padding and the splitting of special tokens on the one backend
that all threads share, and then encodes: between the two another thread may have set something else. Here are two
private copies of the backend whose settings never change.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

Span = tuple[int, int]
# Tokenizers whose backend cannot be copied are called one thread at a time.
_CALLS = threading.Lock()


class Encoded(NamedTuple):
    """Ids, and each one's span in characters of the text, end exclusive."""

    ids: list[int]
    spans: list[Span]


class PrivateTokenizer:
    """Thread-safe: nothing is changed after construction.

    Args:
        tokenizer: a transformers tokenizer. One without a copyable fast backend is called under a lock, and then has
            no spans unless it is fast.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._template_copy = self._foreign_copy = None
        if getattr(tokenizer, "is_fast", False):
            self._template_copy = _copy(tokenizer.backend_tokenizer, splits_special=False)
            self._foreign_copy = _copy(tokenizer.backend_tokenizer, splits_special=True)

    def template_ids(self, text: str) -> list[int]:
        """Ids of a template's own text: special tokens are read as such, none are added."""
        if self._template_copy is not None:
            return list(self._template_copy.encode(text, add_special_tokens=False).ids)
        return list(self._called(text, split_special_tokens=False)["input_ids"])

    def foreign_ids(self, text: str) -> list[int]:
        """Ids of a caller's text: what spells a special token is ordinary text."""
        if self._foreign_copy is not None:
            return list(self._foreign_copy.encode(text, add_special_tokens=False).ids)
        return list(self._called(text, split_special_tokens=True)["input_ids"])

    def foreign(self, text: str) -> Encoded:
        """As ``foreign_ids``, with spans. Needs a fast tokenizer."""
        if self._foreign_copy is not None:
            encoded = self._foreign_copy.encode(text, add_special_tokens=False)
            return Encoded(list(encoded.ids), [(int(start), int(end)) for start, end in encoded.offsets])
        found = self._called(text, split_special_tokens=True, return_offsets_mapping=True)
        return Encoded(found["input_ids"], [(int(start), int(end)) for start, end in found["offset_mapping"]])

    def whole(self, text: str) -> Encoded:
        """A text as ``tokenizer(text)`` reads it: special tokens are read, and added at the ends, with empty spans."""
        if self._template_copy is not None:
            encoded = self._template_copy.encode(text, add_special_tokens=True)
            return Encoded(list(encoded.ids), [(int(start), int(end)) for start, end in encoded.offsets])
        found = self._called(text, add_special_tokens=True, return_offsets_mapping=True)
        return Encoded(found["input_ids"], [(int(start), int(end)) for start, end in found["offset_mapping"]])

    def around(self, texts: int = 1) -> list[list[int]]:
        """Ids that the tokenizer adds before, between and behind ``texts`` (1 or 2) texts."""
        if self._template_copy is not None:
            sample = ("a",) * texts
            encoded = self._template_copy.encode(*sample, add_special_tokens=True)
            ids, sequences = list(encoded.ids), list(encoded.sequence_ids)
            return _gaps(ids, sequences, texts)
        bare = self._called("a", split_special_tokens=False)["input_ids"]
        framed = self._called("a", add_special_tokens=True)["input_ids"]
        at = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
        return [list(framed[:at]), list(framed[at + len(bare) :])]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ``ids``."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _called(self, text: str, **settings: Any) -> dict[str, Any]:
        with _CALLS:
            found = self.tokenizer(text, **{"add_special_tokens": False, **settings})
        return {name: list(value) for name, value in found.items()}


def _gaps(ids: Sequence[int], sequences: Sequence[int | None], texts: int) -> list[list[int]]:
    gaps: list[list[int]] = [[] for _ in range(texts + 1)]
    at = 0
    for token, sequence in zip(ids, sequences, strict=True):
        if sequence is None:
            gaps[at].append(token)
        else:
            at = sequence + 1
    return gaps


def _copy(backend: Any, *, splits_special: bool) -> Any:
    """A copy with truncation and padding off; None where the backend cannot be written down (parts in Python)."""
    try:
        copied = type(backend).from_str(backend.to_str())
    except Exception:  # tokenizers raises bare Exceptions
        return None
    copied.no_truncation()
    copied.no_padding()
    copied.encode_special_tokens = splits_special
    return copied
