"""Thread-safe text to ids with a fast tokenizer, without the state that ``tokenizer(text)`` changes.

A call of a transformers tokenizer sets truncation, padding and the splitting of special tokens on the backend that all
threads share, and then encodes; in between, another thread may set something else. This module keeps private copies of
the backend whose settings never change: for text at the beginning of a sequence and for text that follows other text.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

from redline.chat_template.text_start import Preceding, without_leading_space
from redline.spans import Span

# Tokenizers whose backend cannot be copied are called one thread at a time.
_CALLS = threading.Lock()
_MAX_COPIES = 8  # cached for other tokenizers that are equal
_COPIES: dict[tuple[bytes, bool], Any] = {}


class Encoded(NamedTuple):
    """Ids, and the span of each in characters of the text, end exclusive."""

    ids: list[int]
    spans: list[Span]


class StatelessTokenizer:
    """Thread-safe: nothing is changed after construction.

    Args:
        tokenizer: a transformers tokenizer. If it has no fast backend that can be copied, it is called under a lock;
            it has spans only if it is fast.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._template_copies: dict[Preceding, Any] = {}
        self._user_copies: dict[Preceding, Any] = {}
        if getattr(tokenizer, "is_fast", False):
            self._template_copies = _copies(tokenizer.backend_tokenizer, splits_special=False)
            self._user_copies = _copies(tokenizer.backend_tokenizer, splits_special=True)
        self._added = frozenset(getattr(tokenizer, "added_tokens_decoder", {}))

    def preceding(self, ids: Sequence[int]) -> Preceding:
        """What precedes a text that follows ``ids``."""
        if not ids:
            return "nothing"
        return "token" if ids[-1] in self._added else "text"

    def template_ids(self, text: str, preceding: Preceding = "nothing") -> list[int]:
        """Ids of a template's own text: special tokens in it become special ids, and none are added.

        Args:
            text: a part of a text.
            preceding: what precedes it. A space that the tokenizer adds in front of a text is not added if other text
                precedes it.
        """
        return self.guarded(lambda: self._encoded(text, is_user_text=False, preceding=preceding), len(text)).ids

    def user_text_ids(self, text: str, preceding: Preceding = "nothing") -> list[int]:
        """Ids of a caller's text, in which special tokens are ordinary text. ``preceding``: see ``template_ids``."""
        return self.guarded(lambda: self._encoded(text, is_user_text=True, preceding=preceding), len(text)).ids

    def encode_user_text(self, text: str, preceding: Preceding = "nothing") -> Encoded:
        """As ``user_text_ids``, with spans. Needs a fast tokenizer."""
        return self.guarded(
            lambda: self._encoded(text, is_user_text=True, has_spans=True, preceding=preceding), len(text)
        )

    def encode(self, text: str) -> Encoded:
        """As ``tokenizer(text)``, with spans: special tokens are recognised, and added at the ends with empty spans."""
        return self.guarded(
            lambda: self._encoded(text, is_user_text=False, has_spans=True, adds_special=True), len(text)
        )

    def special_ids_around(self, texts: int = 1) -> list[list[int]]:
        """The special ids that the tokenizer adds before, between and after ``texts`` (1 or 2) texts."""
        if self._template_copies:
            sample = ("a",) * texts
            encoded = self._template_copies["nothing"].encode(*sample, add_special_tokens=True)
            return _gaps(list(encoded.ids), list(encoded.sequence_ids), texts)
        without_special = self._encoded("a", is_user_text=False).ids
        with_special = self._encoded("a", is_user_text=False, adds_special=True).ids
        size = len(without_special)
        start = next((i for i in range(len(with_special)) if with_special[i : i + size] == without_special), 0)
        return [with_special[:start], with_special[start + size :]]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ``ids``."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def drops_leading_space(self) -> bool:
        """Whether decoding removes a space at the beginning."""
        return self.decode(self.user_text_ids(" a", "text")) == "a"

    def normalized(self, text: str) -> str:
        """``text`` as the tokenizer's normalizer writes it."""
        normalizer = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def guarded(self, work: Callable[[], Encoded], characters: int) -> Encoded:
        """The result of ``work`` on a text with ``characters`` characters; subclasses check errors and sizes here."""
        return work()

    def _encoded(
        self,
        text: str,
        *,
        is_user_text: bool,
        has_spans: bool = False,
        adds_special: bool = False,
        preceding: Preceding = "nothing",
    ) -> Encoded:
        copies = self._user_copies if is_user_text else self._template_copies
        if copies:
            ids, spans = (
                self._encode_after_text(text, copies)
                if preceding == "text"
                else _encode(copies[preceding], text, adds_special)
            )
            return Encoded(ids, spans if has_spans else [])
        settings = {"add_special_tokens": adds_special, "split_special_tokens": is_user_text}
        with _CALLS:
            encoded = self.tokenizer(text, **settings, **({"return_offsets_mapping": True} if has_spans else {}))
        spans = [(int(start), int(end)) for start, end in encoded["offset_mapping"]] if has_spans else []
        return Encoded(list(encoded["input_ids"]), spans)

    def _encode_after_text(self, text: str, copies: dict[Preceding, Any]) -> Encoded:
        """Up to the first added token as text that follows other text, from there on as text after a token."""
        after_token = _encode(copies["token"], text)
        if copies["text"] is copies["token"]:
            return after_token
        first = next((n for n, token in enumerate(after_token.ids) if token in self._added), len(after_token.ids))
        end = after_token.spans[first][0] if first < len(after_token.ids) else len(text)
        before = _encode(copies["text"], text[:end])
        return Encoded([*before.ids, *after_token.ids[first:]], [*before.spans, *after_token.spans[first:]])


def _encode(backend: Any, text: str, adds_special: bool = False) -> Encoded:
    encoded = backend.encode(text, add_special_tokens=adds_special)
    return Encoded(list(encoded.ids), [(int(start), int(end)) for start, end in encoded.offsets])


def _gaps(ids: Sequence[int], sequences: Sequence[int | None], texts: int) -> list[list[int]]:
    gaps: list[list[int]] = [[] for _ in range(texts + 1)]
    position = 0
    for token, sequence in zip(ids, sequences, strict=True):
        if sequence is None:
            gaps[position].append(token)
        else:
            position = sequence + 1
    return gaps


def _copies(backend: Any, *, splits_special: bool) -> dict[Preceding, Any]:
    """Copies with truncation and padding off; empty if the backend cannot be serialised (it has parts in Python).

    Equal backends (members of an ensemble, a model and its policy) share one copy: a vocabulary takes tens of
    megabytes.
    """
    try:
        tokenizer_json = backend.to_str()
    except Exception:  # tokenizers raises bare Exceptions
        return {}
    texts: dict[Preceding, str] = {
        preceding: without_leading_space(tokenizer_json, preceding) for preceding in get_args(Preceding)
    }
    return {preceding: _copy(type(backend), text, splits_special) for preceding, text in texts.items()}


def _copy(kind: Any, tokenizer_json: str, splits_special: bool) -> Any:
    key = (hashlib.sha256(tokenizer_json.encode("utf-8", "surrogatepass")).digest(), splits_special)
    with _CALLS:
        if key in _COPIES:
            return _COPIES[key]
        backend_copy = kind.from_str(tokenizer_json)
        backend_copy.no_truncation()
        backend_copy.no_padding()
        backend_copy.encode_special_tokens = splits_special
        _COPIES[key] = backend_copy
        while len(_COPIES) > _MAX_COPIES:
            del _COPIES[next(iter(_COPIES))]
        return backend_copy
