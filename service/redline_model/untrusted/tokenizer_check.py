"""Whether a folder's tokenizer may be given to transformers: bounded, and tried in a process of its own.

What is not found: a rule that is slow, or crashes, only for texts of another kind than those that are tried. It costs
the requests with such texts: see ``redline_model.encoding.guarded_tokenizer`` for what is bounded then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from redline.files.digest import file_digest
from redline_model.errors import BundleError
from redline_model.untrusted.bounded_json import check_size, one_line, read_bytes, read_object
from redline_model.untrusted.trial_process import Limits, TrialError, run_trial

TOKENIZER = "tokenizer.json"
# Processor time grows with the file. A trial does not wait for anything, so the limit in all is for busy machines.
_CPU_S, _MORE_CPU_S = 2, 6
_BYTES_A_S = 4 * 10**6
_WALL_S = 20.0
_MEMORY_BYTES = 2**31
MAX_VOCABULARY = 2**20  # the largest of models in use is a quarter of it
MAX_ADDED_TOKENS = 10_000
MAX_SPECIAL_CHARACTERS = 1000
_MAX_TOKEN_CHARACTERS = 10_000
# At worst each byte is a token, and normalisation writes a letter as up to 18 others.
TOKENS_PER_CHARACTER = 64
SPARE_TOKENS = 1000
_TEXT_S = 0.5
_MAX_BYTES = 64 * 2**20
_MAX_PARTS = 2**23  # of a tokenizer file's JSON; one of 260,000 tokens and 510,000 merges has two millions
_MAX_OLD_BYTES = 16 * 2**20  # of a vocabulary that transformers has to convert
_MAX_OLD_LINE = 1000
_SMALL = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TRIAL = Path(__file__).with_name("tokenizer_trial.py")
_VERSIONED = re.compile(r"tokenizer\.[\w.-]{1,40}\.json")
_IS_LENGTH = re.compile(r"len|size|max")  # what texts are cut to, and not built by
_OLD_TEXTS = ("vocab.json", "vocab.txt", "merges.txt")
_OLD_BINARIES = {".model", ".spm", ".tiktoken"}  # suffixes of others that are converted


def check_tokenizer_files(folder: Path) -> None:
    """Try the tokenizer files of a folder, once for each content in a process.

    Raises:
        BundleError: a file is too large, crashes or occupies the library that reads it, or makes far too many tokens
            of a text; the message names it.
    """
    settings: dict[str, Any] = {}
    for name in _SMALL:
        if (folder / name).exists():
            raw = read_object(folder / name)
            if name == _SMALL[0]:
                settings = raw
                _check_numbers(folder / name, raw)
            _check_added_tokens(folder / name, raw)
    named = _versioned(folder, settings)
    tried = [folder / name for name in dict.fromkeys((TOKENIZER, *named)) if (folder / name).exists()]
    for path in tried:
        data = read_bytes(path, _MAX_BYTES)
        if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_PARTS:
            raise BundleError(f"{path} has more than {_MAX_PARTS} parts; such a file may have that many")
        del data
        _refuse(path, _refusal(str(path.absolute()), file_digest(path)))
    if (folder / TOKENIZER) not in tried:
        _check_old(folder)


def check_loaded_tokenizer(tokenizer: Any, source: str | Path) -> None:
    """Try a tokenizer that transformers has put together itself. Raises BundleError."""
    from transformers import PreTrainedTokenizerFast

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and type(tokenizer) is not PreTrainedTokenizerFast:
        _refuse(source, _refusal_of_text(backend.to_str()))


def _check_added_tokens(path: Path, raw: Mapping[str, Any]) -> None:
    """Raise BundleError where a small file of a tokenizer's names too many tokens, too long ones or too high ids."""
    for name, value in _groups(raw):
        if len(value) > MAX_ADDED_TOKENS:
            raise BundleError(f"{path}: {name} lists {len(value)} tokens; it may list {MAX_ADDED_TOKENS}")
        pairs = value.items() if isinstance(value, dict) else ((None, one) for one in value)
        for key, one in pairs:
            texts = [text for text in (key, one, *_content(one)) if isinstance(text, str)]
            if max(map(len, texts), default=0) > MAX_SPECIAL_CHARACTERS:
                raise BundleError(f"{path}: {name} holds a token of more than {MAX_SPECIAL_CHARACTERS} characters")
            number = int(key) if isinstance(key, str) and key.isdecimal() else one
            if isinstance(number, int) and not 0 <= number < MAX_VOCABULARY:
                raise BundleError(f"{path}: {name} holds the id {number}; ids go up to {MAX_VOCABULARY - 1}")


def _check_numbers(path: Path, raw: Mapping[str, Any]) -> None:
    """Raise BundleError where a setting is so large that a class which counts by it would not end (``extra_ids``)."""
    for name, value in raw.items():
        if isinstance(value, (int, float)) and not _IS_LENGTH.search(name):
            largest = MAX_VOCABULARY if name.endswith("_id") else MAX_ADDED_TOKENS
            if not -largest <= value <= largest:
                raise BundleError(f"{path}: {one_line(name)} is {one_line(value)}, which no tokenizer has")


def _groups(raw: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any] | list[Any]]]:
    """The collections of tokens in a small file by name; its single tokens, and itself, as one of them."""
    for name, value in raw.items():
        if name.endswith("_token"):
            yield name, [value]
        elif "token" in name and isinstance(value, (dict, list)):
            yield name, value
    if all(isinstance(value, int) and not isinstance(value, bool) for value in raw.values()):
        yield "it", dict(raw)  # added_tokens.json


def _content(value: Any) -> tuple[Any, ...]:
    return (value.get("content"),) if isinstance(value, dict) else ()


def _versioned(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """The other tokenizer files that ``tokenizer_config.json`` says may be used."""
    names = settings.get("fast_tokenizer_files", [])
    if not isinstance(names, list) or len(names) > 32 or not all(isinstance(name, str) for name in names):
        raise BundleError(f"{folder / 'tokenizer_config.json'}: fast_tokenizer_files is no short list of names")
    for name in names:
        if name != TOKENIZER and not _VERSIONED.fullmatch(name):
            raise BundleError(
                f"{folder / 'tokenizer_config.json'} names {one_line(repr(name))}, which is no tokenizer file of this "
                "folder"
            )
    return names


def _check_old(folder: Path) -> None:
    """Bound the vocabularies that transformers converts where there is no ``tokenizer.json``."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix in _OLD_BINARIES]
    for path in (*found, *(folder / name for name in _OLD_TEXTS if (folder / name).exists())):
        check_size(path, _MAX_OLD_BYTES)
        if path.name in _OLD_TEXTS:
            data = read_bytes(path, _MAX_OLD_BYTES)
            if max(data.count(b"\n"), data.count(b",")) > MAX_VOCABULARY:
                raise BundleError(f"{path} holds more than {MAX_VOCABULARY} entries")
            if max(map(len, re.split(rb"[\n,]", data))) > _MAX_OLD_LINE:
                raise BundleError(f"{path} holds a token of more than {_MAX_OLD_LINE} bytes")


def _refuse(source: str | Path, reason: str | None) -> None:
    if reason is not None:
        raise BundleError(f"the tokenizer of {source} is refused: {one_line(reason)}")


@lru_cache(maxsize=64)
def _refusal(file: str, digest: str) -> str | None:
    """``digest``: of the file's content, so that one that has changed is tried again."""
    return _tried({"file": file}, Path(file).stat().st_size)


@lru_cache(maxsize=16)
def _refusal_of_text(text: str) -> str | None:
    return _tried({"text": text}, len(text))


def _tried(what: dict[str, str], size: int) -> str | None:
    task = what | {
        "vocabulary": MAX_VOCABULARY,
        "added": MAX_ADDED_TOKENS,
        "token_characters": _MAX_TOKEN_CHARACTERS,
        "special_characters": MAX_SPECIAL_CHARACTERS,
        "tokens_per_character": TOKENS_PER_CHARACTER,
        "spare_tokens": SPARE_TOKENS,
        "text_s": _TEXT_S,
    }
    try:
        limits = Limits(_CPU_S + min(_MORE_CPU_S, -(-size // _BYTES_A_S)), _WALL_S, _MEMORY_BYTES)
        reason: str | None = run_trial(_TRIAL, task, limits)
    except TrialError as error:
        return str(error)
    return reason
