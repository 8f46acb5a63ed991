"""Text to ids with a fast tokenizer, without the state that ``tokenizer(text)`` changes.

A call of a transformers tokenizer sets truncation, padding and the splitting of special tokens on the one backend
that all threads share, and then encodes: between the two another thread may have set something else. Here are
private copies of the backend whose settings never change, for pieces that begin a text and for those that do not.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

from redline.chat_template.text_start import Preceding, without_beginning

Span = tuple[int, int]
# Tokenizers whose backend cannot be copied are called one thread at a time.
_CALLS = threading.Lock()
_MAX_COPIES = 8  # kept for others that need the same
_COPIES: dict[tuple[bytes, bool], Any] = {}


class Encoded(NamedTuple):
    """Ids, and each one's span in characters of the text, end exclusive."""

    ids: list[int]
    spans: list[Span]


class StatelessTokenizer:
    """Thread-safe: nothing is changed after construction.

    Args:
        tokenizer: a transformers tokenizer. One without a copyable fast backend is called under a lock, and then has
            no spans unless it is fast.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._template_copies: dict[Preceding, Any] = {}
        self._foreign_copies: dict[Preceding, Any] = {}
        if getattr(tokenizer, "is_fast", False):
            self._template_copies = _copies(tokenizer.backend_tokenizer, splits_special=False)
            self._foreign_copies = _copies(tokenizer.backend_tokenizer, splits_special=True)
        self._added = frozenset(getattr(tokenizer, "added_tokens_decoder", {}))

    def behind(self, ids: Sequence[int]) -> Preceding:
        """What stands before a piece that follows ``ids``."""
        if not ids:
            return "nothing"
        return "token" if ids[-1] in self._added else "text"

    def template_ids(self, text: str, behind: Preceding = "nothing") -> list[int]:
        """Ids of a template's own text: special tokens are read as such, none are added.

        Args:
            text: a piece of a text.
            behind: what stands before it there. A space that the tokenizer puts before a text is not put before one
                that stands behind another.
        """
        return self.guarded(lambda: self._encoded(text, is_foreign=False, behind=behind), len(text)).ids

    def user_text_ids(self, text: str, behind: Preceding = "nothing") -> list[int]:
        """Ids of a caller's text: what spells a special token is ordinary text. ``behind``: see ``template_ids``."""
        return self.guarded(lambda: self._encoded(text, is_foreign=True, behind=behind), len(text)).ids

    def foreign(self, text: str, behind: Preceding = "nothing") -> Encoded:
        """As ``user_text_ids``, with spans. Needs a fast tokenizer."""
        return self.guarded(lambda: self._encoded(text, is_foreign=True, has_spans=True, behind=behind), len(text))

    def whole(self, text: str) -> Encoded:
        """A text as ``tokenizer(text)`` reads it: special tokens are read, and added at the ends, with empty spans."""
        return self.guarded(lambda: self._encoded(text, is_foreign=False, has_spans=True, is_framed=True), len(text))

    def around(self, texts: int = 1) -> list[list[int]]:
        """Ids that the tokenizer adds before, between and behind ``texts`` (1 or 2) texts."""
        if self._template_copies:
            sample = ("a",) * texts
            encoded = self._template_copies["nothing"].encode(*sample, add_special_tokens=True)
            return _gaps(list(encoded.ids), list(encoded.sequence_ids), texts)
        bare = self._encoded("a", is_foreign=False).ids
        framed = self._encoded("a", is_foreign=False, is_framed=True).ids
        at = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
        return [framed[:at], framed[at + len(bare) :]]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ``ids``."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def drops_space(self) -> bool:
        """Whether the text of ids that begin with a space is without it."""
        return self.decode(self.user_text_ids(" a", "text")) == "a"

    def normalized(self, text: str) -> str:
        """``text`` as the tokenizer's normalizer writes it."""
        normalizer = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def guarded(self, work: Callable[[], Encoded], characters: int) -> Encoded:
        """What ``work`` makes of so many characters; the place to bound it."""
        return work()

    def _encoded(
        self,
        text: str,
        *,
        is_foreign: bool,
        has_spans: bool = False,
        is_framed: bool = False,
        behind: Preceding = "nothing",
    ) -> Encoded:
        copies = self._foreign_copies if is_foreign else self._template_copies
        if copies:
            ids, spans = self._behind_text(text, copies) if behind == "text" else _read(copies[behind], text, is_framed)
            return Encoded(ids, spans if has_spans else [])
        settings = {"add_special_tokens": is_framed, "split_special_tokens": is_foreign}
        with _CALLS:
            found = self.tokenizer(text, **settings, **({"return_offsets_mapping": True} if has_spans else {}))
        spans = [(int(start), int(end)) for start, end in found["offset_mapping"]] if has_spans else []
        return Encoded(list(found["input_ids"]), spans)

    def _behind_text(self, text: str, copies: dict[Preceding, Any]) -> Encoded:
        """Up to the first added token as behind other text, from there on as behind a token."""
        whole = _read(copies["token"], text)
        if copies["text"] is copies["token"]:
            return whole
        first = next((n for n, token in enumerate(whole.ids) if token in self._added), len(whole.ids))
        end = whole.spans[first][0] if first < len(whole.ids) else len(text)
        before = _read(copies["text"], text[:end])
        return Encoded([*before.ids, *whole.ids[first:]], [*before.spans, *whole.spans[first:]])


def _read(backend: Any, text: str, is_framed: bool = False) -> Encoded:
    encoded = backend.encode(text, add_special_tokens=is_framed)
    return Encoded(list(encoded.ids), [(int(start), int(end)) for start, end in encoded.offsets])


def _gaps(ids: Sequence[int], sequences: Sequence[int | None], texts: int) -> list[list[int]]:
    gaps: list[list[int]] = [[] for _ in range(texts + 1)]
    at = 0
    for token, sequence in zip(ids, sequences, strict=True):
        if sequence is None:
            gaps[at].append(token)
        else:
            at = sequence + 1
    return gaps


def _copies(backend: Any, *, splits_special: bool) -> dict[Preceding, Any]:
    """Copies with truncation and padding off; none where the backend cannot be written down (parts in Python).

    Equal backends (members of an ensemble, a model and its policy) share one: a vocabulary takes tens of megabytes.
    """
    try:
        written = backend.to_str()
    except Exception:  # tokenizers raises bare Exceptions
        return {}
    texts: dict[Preceding, str] = {behind: without_beginning(written, behind) for behind in get_args(Preceding)}
    return {behind: _copy(type(backend), text, splits_special) for behind, text in texts.items()}


def _copy(kind: Any, written: str, splits_special: bool) -> Any:
    key = (hashlib.sha256(written.encode("utf-8", "surrogatepass")).digest(), splits_special)
    with _CALLS:
        if key in _COPIES:
            return _COPIES[key]
        copied = kind.from_str(written)
        copied.no_truncation()
        copied.no_padding()
        copied.encode_special_tokens = splits_special
        _COPIES[key] = copied
        while len(_COPIES) > _MAX_COPIES:
            del _COPIES[next(iter(_COPIES))]
        return copied
