"""Reads the rows of a set: responses with marked words, and comparisons of responses.

The rows of a set that have the same prompt and the same rejected response are annotations of one response. Sets of
rewrites have one row per reference, and name all references in ``meta.references``; a reference that is equal to the
response changes nothing and has no row. **A word is marked if at least half of the annotations mark it.**
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from redline.benchmark.words import word_spans
from redline.files.row_files import BadRowError
from redline.messages import Prompt
from redline.preference_data.checked_rows import CheckedRows
from redline.preference_data.rows import Pair, parse_row
from redline.spans import Span, share_characters

_KEY_CHARACTERS = 16


class MarkedResponse(NamedTuple):
    """A response, its words, and which of them people marked.

    ``key`` identifies prompt and response, and ``group`` the prompt (or the source sentence), without their text.
    ``is_clean``: half of the annotations or more neither mark a word nor insert anything at the same place.
    """

    key: str
    group: str
    prompt: Prompt
    text: str
    words: list[Span]
    marked: list[bool]
    is_clean: bool


class Comparison(NamedTuple):
    """Responses to one prompt of which each of ``chosen`` is better than each of ``rejected``: one each, or one per
    style. ``subset``: the part of the set that the row belongs to; "" if rows have none.
    """

    key: str
    group: str
    subset: str
    prompt: Prompt
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]


class _Annotation(NamedTuple):
    """One row: its pair, the offsets of its insertions, all references of the response, and its group."""

    pair: Pair
    gaps: frozenset[int]
    references: tuple[str, ...]
    group: str


def marked_responses(path: Path, limit: int | None = None) -> list[MarkedResponse]:
    """The first ``limit`` responses of a file, with all their annotations, in the order of their first rows.

    Rows without ``spans`` are left out. Raises RowsError: the file cannot be read or has bad rows.
    """
    rows: dict[str, list[_Annotation]] = {}
    for _, row in CheckedRows(path, _annotation):
        if row.pair.spans is None or not row.pair.rejected.strip():
            continue
        key = _digest([row.pair.prompt, row.pair.rejected])
        if key in rows or limit is None or len(rows) < limit:
            rows.setdefault(key, []).append(row)
    return [_marked(key, annotations) for key, annotations in rows.items()]


def has_spans(path: Path) -> bool:
    """Whether a row of a file has spans. Raises RowsError as ``marked_responses`` does."""
    return any(row.get("spans") for _, row in CheckedRows(path, lambda location, row: row))


def comparisons(path: Path, limit: int | None = None) -> list[Comparison]:
    """The first ``limit`` rows: pairs in any format that training reads, or rows with several styles per side.

    Rows with styles have lists of texts in ``chosen`` and ``rejected``, equally long, in increasing order of style, as
    in RM-Bench. The subset is the column ``subset`` or ``domain``, as in RewardBench and RM-Bench.

    Raises:
        RowsError: the file cannot be read or has bad rows.
    """
    return [comparison for _, comparison in CheckedRows(path, _comparison, limit)]


def _meta(row: dict[str, Any]) -> dict[str, Any]:
    meta = row.get("meta")
    return meta if isinstance(meta, dict) else {}


def _group(pair: Pair, row: dict[str, Any]) -> str:
    """The sentence that was rewritten, if the row names it (its prompt may be a constant), else the prompt."""
    sentence = _meta(row).get("sentence")
    return _digest(sentence if isinstance(sentence, str) else pair.prompt_key)


def _annotation(location: str, row: dict[str, Any]) -> _Annotation:
    pair = parse_row(row, location, teaches=False)
    references, gaps = _meta(row).get("references"), _meta(row).get("gap_errors")
    texts = tuple(text for text in references if isinstance(text, str)) if isinstance(references, list) else ()
    offsets = frozenset(gap for gap in gaps if isinstance(gap, int)) if isinstance(gaps, list) else frozenset()
    return _Annotation(pair, offsets, texts, _group(pair, row))


def _marked(key: str, annotations: Sequence[_Annotation]) -> MarkedResponse:
    first = annotations[0]
    response, words = first.pair.rejected, word_spans(first.pair.rejected)
    by_text = {row.pair.chosen.strip(): row for row in annotations}
    if first.references:
        # a reference without a row changes nothing if it equals the response; others were left out of the set
        known = [by_text.get(text.strip()) for text in first.references if text.strip() in {*by_text, response.strip()}]
    else:
        known = list(annotations)
    known = known or list(annotations)
    votes = [share_characters(words, row.pair.spans or ()) if row else [False] * len(words) for row in known]
    marked = [2 * sum(marks) >= len(known) for marks in zip(*votes, strict=True)]
    gaps = [gap for row in known if row for gap in row.gaps]
    has_gap = any(2 * gaps.count(gap) >= len(known) for gap in set(gaps))
    is_clean = not any(marked) and not has_gap
    return MarkedResponse(key, first.group, first.pair.prompt, response, words, marked, is_clean)


def _comparison(location: str, row: dict[str, Any]) -> Comparison:
    subset = next((row[name] for name in ("subset", "domain") if isinstance(row.get(name), str)), "")
    chosen, rejected = _texts(row.get("chosen")), _texts(row.get("rejected"))
    if chosen is not None and rejected is not None:
        if len(chosen) != len(rejected) or len(chosen) < 2:
            raise BadRowError(f"{len(chosen)} texts in 'chosen' and {len(rejected)} in 'rejected'; need equally many")
        pair = parse_row({"prompt": row.get("prompt"), "chosen": chosen[0], "rejected": rejected[0]}, location)
        sides = chosen, rejected
    else:
        pair = parse_row(row, location, teaches=False)
        sides = (pair.chosen,), (pair.rejected,)
    return Comparison(_digest([pair.prompt, *sides]), _group(pair, row), subset, pair.prompt, *sides)


def _texts(value: Any) -> tuple[str, ...] | None:
    """A list of texts; None for anything else."""
    return tuple(value) if isinstance(value, list) and value and all(isinstance(v, str) for v in value) else None


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_CHARACTERS]


def subsets(rows: Iterable[Comparison]) -> list[str]:
    """The names of the subsets, sorted, without the empty one."""
    return sorted({row.subset for row in rows} - {""})
