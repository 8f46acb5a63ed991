"""Preference pairs from files and hub data sets, every format that people keep them in.

Accepted rows (told apart by their shape):

- ``{"prompt": text or messages, "chosen": text, "rejected": text}``, further fields ignored, but for ``"spans"``:
  ``[{"start", "end"}, ...]``, characters of ``rejected`` that are marked as wrong;
- TRL's preference format, explicit prompt: the same with ``chosen``/``rejected`` as messages;
- TRL's implicit prompt: no ``prompt``; ``chosen`` and ``rejected`` are whole texts or whole conversations;
- HH-RLHF transcripts: no ``prompt``; texts with ``\\n\\nHuman:`` and ``\\n\\nAssistant:`` turns.

Every bad row is reported, with file, line and reason, before anything else happens; none is dropped.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redline_model.errors import DataError
from redline_model.folders import file_digest
from redline_model.manifest import DataSource

Message = dict[str, str]
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLE = {"Human": "user", "Assistant": "assistant"}
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
MAX_REPORTED = 50


@dataclass(frozen=True)
class Pair:
    """One comparison; ``where`` names file and line, or whatever else the pair came from.

    ``spans``: what humans marked as wrong, in characters into ``rejected``, end exclusive; None where nobody looked.
    """

    prompt: str | list[Message]
    chosen: str
    rejected: str
    where: str
    spans: tuple[tuple[int, int], ...] | None = None

    @property
    def prompt_key(self) -> str:
        """What makes two prompts the same prompt."""
        return json.dumps(self.prompt, sort_keys=True, ensure_ascii=False)


class _BadRowError(Exception):
    pass


def load_pairs(sources: Sequence[str | Path]) -> tuple[list[Pair], list[DataSource]]:
    """All pairs of all sources, and what they were.

    Args:
        sources: files (``.jsonl``, ``.json``, either gzipped) or hub ids ``owner/name``, optionally
            ``owner/name@split`` (default ``train``).

    Raises:
        DataError: listing every bad row of every source (the first 50 in full), or the source that is no source.
    """
    pairs: list[Pair] = []
    origins: list[DataSource] = []
    problems: list[str] = []
    for source in sources:
        before = len(pairs)
        digest: str | None
        if Path(source).is_file():
            rows, digest = _file_rows(Path(source)), file_digest(Path(source))
        else:
            rows, digest = _hub_rows(str(source)), None
        for where, row in rows:
            try:
                if isinstance(row, _BadRowError):
                    raise row
                pairs.append(parse_row(row, where))
            except _BadRowError as error:
                problems.append(f"{where}: {error}")
        if len(pairs) == before and not problems:
            problems.append(f"{source}: holds no pairs")
        origins.append(DataSource(name=str(source), sha256=digest, pairs=len(pairs) - before))
    if problems:
        raise DataError(listing(problems, "bad rows; nothing was trained"))
    return pairs, origins


def listing(problems: Sequence[str], what: str) -> str:
    """``N what`` and the problems, one a line, the first fifty."""
    shown = list(problems[:MAX_REPORTED])
    if len(problems) > MAX_REPORTED:
        shown.append(f"... and {len(problems) - MAX_REPORTED} more")
    return "\n  ".join([f"{len(problems)} {what}", *shown])


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.name.endswith(_SUFFIXES):
        raise DataError(f"{path}: unknown data format; this reads {', '.join(_SUFFIXES)} and hub ids")
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            if path.name.removesuffix(".gz").endswith(".json"):
                rows = json.loads(file.read())
                if not isinstance(rows, list):
                    raise DataError(f"{path}: a .json file must hold a list of rows")
                yield from ((f"{path}:row {n}", row) for n, row in enumerate(rows, 1))
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield f"{path}:{number}", json.loads(line)
                    except (ValueError, RecursionError) as error:
                        yield f"{path}:{number}", _BadRowError(f"not JSON: {error}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error


def _hub_rows(source: str) -> Iterator[tuple[str, Any]]:
    name, _, split = source.partition("@")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(_SUFFIXES):
        raise DataError(f"{source}: there is no such file")
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split=split or "train")
    except Exception as error:  # datasets raises a dozen unrelated types for "cannot be had"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source}: no such file, and no such hub data set: {reason}") from error
    for number, row in enumerate(rows, 1):
        yield f"{source}:row {number}", row


def parse_row(row: Any, where: str) -> Pair:
    """One row of any accepted form. Raises an error whose text is the reason."""
    if not isinstance(row, dict):
        raise _BadRowError(f"a row must be an object, this is a {type(row).__name__}")
    for field in ("chosen", "rejected"):
        if row.get(field) is None:
            raise _BadRowError(f"'{field}' is missing")
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise _BadRowError("'chosen' and 'rejected' are of different forms")
    prompt = row.get("prompt")
    if prompt is None:
        prompt, chosen, rejected = _split_prompt(chosen, rejected)
    if not isinstance(prompt, str):
        prompt = _messages(prompt, "prompt")
        if not prompt:
            raise _BadRowError("'prompt' is an empty conversation")
        if prompt[-1]["role"] == "assistant":
            raise _BadRowError("'prompt' ends with an assistant turn; the response is that turn")
    chosen, rejected = _reply(chosen, "chosen"), _reply(rejected, "rejected")
    try:
        json.dumps([prompt, chosen, rejected], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _BadRowError("is not valid Unicode: it holds half a surrogate pair") from error
    if chosen == rejected:
        raise _BadRowError("'chosen' and 'rejected' are the same")
    # a text that lends its beginning to an implicit prompt is no longer the one that was marked
    spans = _spans(row.get("spans"), rejected) if row.get("prompt") is not None else None
    return Pair(prompt, chosen, rejected, where, spans)


def _spans(value: Any, text: str) -> tuple[tuple[int, int], ...] | None:
    """Error spans; None where there are none or the field is something else's."""
    if not isinstance(value, list) or not all(isinstance(s, dict) and "start" in s and "end" in s for s in value):
        return None
    spans = tuple((span["start"], span["end"]) for span in value)
    for start, end in spans:
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= len(text):
            raise _BadRowError(f"a span from {start!r} to {end!r} does not lie in 'rejected' ({len(text)} characters)")
    return spans


def _messages(value: Any, field: str) -> list[Message]:
    if not isinstance(value, list):
        raise _BadRowError(f"'{field}' must be text or a list of messages, not {type(value).__name__}")
    messages = []
    for message in value:
        if not isinstance(message, dict):
            raise _BadRowError(f"'{field}' holds a message that is not an object")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise _BadRowError(f"'{field}' holds a message without text 'role' and 'content'")
        messages.append({"role": role, "content": content})
    return messages


def _reply(value: Any, field: str) -> str:
    if not isinstance(value, str):
        messages = _messages(value, field)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise _BadRowError(f"'{field}' must be one assistant turn beyond the prompt, it has {len(messages)}")
        value = messages[0]["content"]
    if not value.strip():
        raise _BadRowError(f"'{field}' is empty")
    return str(value)


def _split_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """An implicit prompt: what the two sides begin with alike."""
    if isinstance(chosen, str):
        if _HH_TURN.match(chosen) and _HH_TURN.match(rejected):
            chosen, rejected = _transcript(chosen), _transcript(rejected)
        else:
            length = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
            shared = chosen[: min(len(chosen), len(rejected)) if length is None else length]
            # TRL cuts at the first character that differs; that may be inside a word, so the cut goes back to the
            # white space before it, which stays with the responses. Scripts without white space are cut as TRL does.
            spaces = [n for n, character in enumerate(shared) if character.isspace()]
            at = spaces[-1] if spaces and spaces[-1] > 0 else len(shared)
            if at <= 0:
                raise _BadRowError("there is no 'prompt', and the two sides do not begin alike")
            return chosen[:at], chosen[at:], rejected[at:]
    chosen, rejected = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise _BadRowError("there is no 'prompt', and the conversations differ before their last turn")
    return chosen[:-1], chosen[-1:], rejected[-1:]


def _transcript(text: str) -> list[Message]:
    parts = _HH_TURN.split(text)[1:]
    return [
        {"role": _HH_ROLE[role], "content": content.strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def split_by_prompt(pairs: Iterable[Pair], held_out_share: float) -> tuple[list[Pair], list[Pair]]:
    """``(training, held out)``; decided by each prompt's digest, so a prompt is never on both sides."""
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(pair.prompt_key.encode()).digest()
        sides[int.from_bytes(digest[:8], "big") / 2**64 < held_out_share].append(pair)
    return sides
