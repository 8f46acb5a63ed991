"""Check a folder's tokenizer before transformers reads it: size limits, and a trial in a limited process.

Not detected: a rule that is slow or crashes only for other kinds of text than those that are tried. Requests with such
texts fail; ``redline_model.encoding.guarded_tokenizer`` says what is limited then.
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
# The limit of processor time grows with the file. The limit of wall-clock time is only for busy machines.
_BASE_CPU_S, _MAX_EXTRA_CPU_S = 2, 6
_BYTES_PER_CPU_S = 4 * 10**6
_WALL_S = 20.0
_MEMORY_BYTES = 2**31
MAX_VOCABULARY = 2**20  # the largest vocabulary in use is a quarter of it
MAX_ADDED_TOKENS = 10_000
MAX_SPECIAL_CHARACTERS = 1000
_MAX_TOKEN_CHARACTERS = 10_000
# In the worst case each byte is a token, and normalisation replaces a character by up to 18 others.
TOKENS_PER_CHARACTER = 64
SPARE_TOKENS = 1000
_MAX_TEXT_S = 0.5
_MAX_BYTES = 64 * 2**20
_MAX_PARTS = 2**23  # of a tokenizer file's JSON; one with 260,000 tokens and 510,000 merges has two million
_MAX_LEGACY_BYTES = 16 * 2**20  # of a vocabulary in an older format, which transformers converts
_MAX_LEGACY_LINE = 1000
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TRIAL = Path(__file__).with_name("tokenizer_trial.py")
_VERSIONED_NAME = re.compile(r"tokenizer\.[\w.-]{1,40}\.json")
_LENGTH_NAME = re.compile(r"len|size|max")  # limits for texts, not numbers of objects to create
_LEGACY_TEXTS = ("vocab.json", "vocab.txt", "merges.txt")
_LEGACY_BINARIES = {".model", ".spm", ".tiktoken"}  # suffixes of binary formats that are converted


def check_tokenizer_files(folder: Path) -> None:
    """Try the tokenizer files of a folder; each content is tried once per process.

    Raises:
        BundleError: a file is too large, crashes or blocks the library that reads it, or makes far too many tokens of
            a text; the message names it.
    """
    settings: dict[str, Any] = {}
    for name in _SETTINGS_FILES:
        if (folder / name).exists():
            raw = read_object(folder / name)
            if name == _SETTINGS_FILES[0]:
                settings = raw
                _check_numbers(folder / name, raw)
            _check_added_tokens(folder / name, raw)
    other_files = _versioned_files(folder, settings)
    paths = [folder / name for name in dict.fromkeys((TOKENIZER, *other_files)) if (folder / name).exists()]
    for path in paths:
        data = read_bytes(path, _MAX_BYTES)
        if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_PARTS:
            raise BundleError(f"{path} has more than {_MAX_PARTS} parts; such a file may have that many")
        del data
        _raise_if_refused(path, _refusal_of_file(str(path.absolute()), file_digest(path)))
    if (folder / TOKENIZER) not in paths:
        _check_legacy_files(folder)


def check_loaded_tokenizer(tokenizer: Any, source: str | Path) -> None:
    """Try a tokenizer that transformers has built from several files. Raises BundleError."""
    from transformers import PreTrainedTokenizerFast

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and type(tokenizer) is not PreTrainedTokenizerFast:
        _raise_if_refused(source, _refusal_of_text(backend.to_str()))


def _check_added_tokens(path: Path, raw: Mapping[str, Any]) -> None:
    """Raise BundleError if a settings file has too many tokens, too long tokens or too high ids."""
    for name, value in _groups(raw):
        if len(value) > MAX_ADDED_TOKENS:
            raise BundleError(f"{path}: {name} lists {len(value)} tokens; it may list {MAX_ADDED_TOKENS}")
        pairs = value.items() if isinstance(value, dict) else ((None, token) for token in value)
        for key, token in pairs:
            texts = [text for text in (key, token, *_content(token)) if isinstance(text, str)]
            if max(map(len, texts), default=0) > MAX_SPECIAL_CHARACTERS:
                raise BundleError(f"{path}: {name} holds a token of more than {MAX_SPECIAL_CHARACTERS} characters")
            number = int(key) if isinstance(key, str) and key.isdecimal() else token
            if isinstance(number, int) and not 0 <= number < MAX_VOCABULARY:
                raise BundleError(f"{path}: {name} holds the id {number}; ids go up to {MAX_VOCABULARY - 1}")


def _check_numbers(path: Path, raw: Mapping[str, Any]) -> None:
    """Raise BundleError if a number is so large that a class would create that many tokens (``extra_ids``)."""
    for name, value in raw.items():
        if isinstance(value, (int, float)) and not _LENGTH_NAME.search(name):
            largest = MAX_VOCABULARY if name.endswith("_id") else MAX_ADDED_TOKENS
            if not -largest <= value <= largest:
                raise BundleError(f"{path}: {one_line(name)} is {one_line(value)}, which no tokenizer has")


def _groups(raw: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any] | list[Any]]]:
    """The lists and maps of tokens in a settings file, by name; single tokens count as a list of one."""
    for name, value in raw.items():
        if name.endswith("_token"):
            yield name, [value]
        elif "token" in name and isinstance(value, (dict, list)):
            yield name, value
    if all(isinstance(value, int) and not isinstance(value, bool) for value in raw.values()):
        yield "it", dict(raw)  # added_tokens.json


def _content(value: Any) -> tuple[Any, ...]:
    return (value.get("content"),) if isinstance(value, dict) else ()


def _versioned_files(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """The other tokenizer files that ``tokenizer_config.json`` names."""
    names = settings.get("fast_tokenizer_files", [])
    if not isinstance(names, list) or len(names) > 32 or not all(isinstance(name, str) for name in names):
        raise BundleError(f"{folder / 'tokenizer_config.json'}: fast_tokenizer_files is not a short list of names")
    for name in names:
        if name != TOKENIZER and not _VERSIONED_NAME.fullmatch(name):
            raise BundleError(
                f"{folder / 'tokenizer_config.json'} names {one_line(repr(name))}, which is not a tokenizer file of "
                "this folder"
            )
    return names


def _check_legacy_files(folder: Path) -> None:
    """Check the size of vocabularies that transformers converts if there is no ``tokenizer.json``."""
    binaries = [path for path in sorted(folder.iterdir()) if path.suffix in _LEGACY_BINARIES]
    for path in (*binaries, *(folder / name for name in _LEGACY_TEXTS if (folder / name).exists())):
        check_size(path, _MAX_LEGACY_BYTES)
        if path.name in _LEGACY_TEXTS:
            data = read_bytes(path, _MAX_LEGACY_BYTES)
            if max(data.count(b"\n"), data.count(b",")) > MAX_VOCABULARY:
                raise BundleError(f"{path} holds more than {MAX_VOCABULARY} entries")
            if max(map(len, re.split(rb"[\n,]", data))) > _MAX_LEGACY_LINE:
                raise BundleError(f"{path} holds a token of more than {_MAX_LEGACY_LINE} bytes")


def _raise_if_refused(source: str | Path, reason: str | None) -> None:
    if reason is not None:
        raise BundleError(f"the tokenizer of {source} is refused: {one_line(reason)}")


@lru_cache(maxsize=64)
def _refusal_of_file(file: str, digest: str) -> str | None:
    """``digest`` of the content is part of the cache key, so that a changed file is tried again."""
    return _run_trial({"file": file}, Path(file).stat().st_size)


@lru_cache(maxsize=16)
def _refusal_of_text(text: str) -> str | None:
    return _run_trial({"text": text}, len(text))


def _run_trial(source: dict[str, str], size: int) -> str | None:
    task = source | {
        "vocabulary": MAX_VOCABULARY,
        "added": MAX_ADDED_TOKENS,
        "token_characters": _MAX_TOKEN_CHARACTERS,
        "special_characters": MAX_SPECIAL_CHARACTERS,
        "tokens_per_character": TOKENS_PER_CHARACTER,
        "spare_tokens": SPARE_TOKENS,
        "text_s": _MAX_TEXT_S,
    }
    try:
        limits = Limits(_BASE_CPU_S + min(_MAX_EXTRA_CPU_S, -(-size // _BYTES_PER_CPU_S)), _WALL_S, _MEMORY_BYTES)
        reason: str | None = run_trial(_TRIAL, task, limits)
    except TrialError as error:
        return str(error)
    return reason
