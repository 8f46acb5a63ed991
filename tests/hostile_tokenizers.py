"""Hostile tokenizers, as changes to a copy of a good bundle."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

from tests.damage import Damage, file, in_order, json_file, update_digests

TOKENIZER = "tokenizer.json"


def tokenizer(**parts: Any) -> Damage:
    """Set parts of ``tokenizer.json``."""
    return json_file(TOKENIZER, **parts)


def split(pattern: str) -> Damage:
    """Replace the pre-tokenizer by a split at this expression."""
    part = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return tokenizer(pre_tokenizer=part)


def replace(pattern: dict[str, str], content: str) -> Damage:
    """Replace the normalizer."""
    return tokenizer(normalizer={"type": "Replace", "pattern": pattern, "content": content})


def several_replacements(folder: Path) -> None:
    """Five replacements, each of which makes ten characters of one."""
    parts = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10} for _ in range(5)]
    tokenizer(normalizer={"type": "Sequence", "normalizers": parts})(folder)


def vocabulary(tokens: dict[str, int]) -> Damage:
    """A model of whole words."""
    return tokenizer(model={"type": "WordLevel", "vocab": {"<unk>": 0, **tokens}, "unk_token": "<unk>"})


def added(count: int, size: int = 8, step: int = 1) -> Damage:
    """More added tokens: ``count`` of them with ``size`` characters, and ids that increase by ``step``."""

    def damage(folder: Path) -> None:
        raw = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
        new_tokens = [{"id": 400 + n * step, "content": f"<{n:0{size - 2}}>", **flags} for n in range(count)]
        tokenizer(added_tokens=[*raw["added_tokens"], *new_tokens])(folder)

    return damage


def long_word(folder: Path) -> None:
    """WordPiece that searches words of any length."""
    model = {"type": "WordPiece", "vocab": {"<unk>": 0, "b": 1} | {"a" * n: n + 1 for n in range(1, 300)}}
    model |= {"unk_token": "<unk>", "continuing_subword_prefix": "", "max_input_chars_per_word": 10**9}
    tokenizer(model=model, pre_tokenizer=None)(folder)


def prefix_that_cuts_a_letter(folder: Path) -> None:
    """A BPE model that removes two bytes of a merged token, in the middle of a letter."""
    model = {"type": "BPE", "vocab": {"a": 0, "é": 1}, "merges": [["a", "é"]], "continuing_subword_prefix": "x"}
    tokenizer(model=model)(folder)


def prefix_longer_than_tokens(folder: Path) -> None:
    """A BPE model that removes more bytes of a merged token than it has."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    tokenizer(model=model | {"continuing_subword_prefix": "long"})(folder)


def charsmap(data: bytes) -> Damage:
    """Replace the table of SentencePiece's normalizer."""
    part = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}
    return tokenizer(normalizer=part)


def many_special_tokens(folder: Path) -> None:
    """A template of a hundred thousand special tokens around a text."""
    piece = {"SpecialToken": {"id": "a", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    parts: dict[str, Any] = {
        "single": [*[piece] * 100_000, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
    }
    special = {"a": {"id": "a", "ids": [1], "tokens": ["a"]}}
    tokenizer(post_processor={"type": "TemplateProcessing", **parts, "special_tokens": special})(folder)


def without_file(name: str, content: str | bytes) -> Damage:
    """Only a vocabulary in an older format, without ``tokenizer.json``."""
    return in_order(lambda folder: (folder / TOKENIZER).unlink(), file(name, content))


def versioned(name: str) -> Damage:
    """A second tokenizer file that the configuration names for newer libraries."""

    def damage(folder: Path) -> None:
        (folder / TOKENIZER).rename(folder / "good.json")
        raw = json.loads((folder / "good.json").read_text(encoding="utf-8"))
        part = {"type": "Split", "pattern": {"Regex": "(a|a)+$"}, "behavior": "Isolated", "invert": False}
        (folder / TOKENIZER).write_text(json.dumps(raw), encoding="utf-8")
        (folder / name).write_text(json.dumps({**raw, "pre_tokenizer": part}), encoding="utf-8")
        (folder / "good.json").unlink()
        json_file("tokenizer_config.json", fast_tokenizer_files=[name])(folder)
        update_digests(folder)

    return damage


HOSTILE_TOKENIZERS: dict[str, Damage] = {
    "pattern that backtracks": split(r"(a+)+$"),
    "pattern that backtracks over blanks": split(r"(\s|\s\s)+x"),
    "pattern that backtracks over pairs": split(r"(xy|xyxy)+z"),
    "pattern that takes squares": split(r"a+?$|b"),
    "pattern that is nested": split("(" * 5000 + "a" + ")" * 5000),
    "pattern with large counts": split("((a{1000}){1000}){1000}"),
    "pattern of no sense": split("(?<"),
    "replacement of a letter by 100,000": replace({"String": "a"}, "b" * 100_000),
    "replacement of nothing by text": replace({"Regex": "x*"}, "abc" * 1000),
    "replacement of an odd letter": replace({"String": "\u2603"}, "a" * 10_000),
    "replacements one after the other": several_replacements,
    "text that is put in front": tokenizer(normalizer={"type": "Prepend", "prepend": "a" * 10_000_000}),
    "pieces of length 0": tokenizer(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "table of SentencePiece that is cut off": charsmap(b"\0\0\0"),
    "table of SentencePiece that leads nowhere": charsmap(struct.pack("<III", 8, 0xFFFFFFF0, 0xFFFFFFFF) + b"abc"),
    "prefix that cuts a letter": prefix_that_cuts_a_letter,
    "prefix longer than tokens": prefix_longer_than_tokens,
    "words of any length": long_word,
    "vocabulary of a million and a half": vocabulary({f"{n}": n + 1 for n in range(1_500_000)}),
    "vocabulary with an id of 10**9": vocabulary({"a": 10**9}),
    "token of 100,000 letters": vocabulary({"a" * 100_000: 1}),
    "20,000 added tokens": added(20_000),
    "added token of 2,000 letters": added(1, size=2000),
    "hundred thousand special tokens around a text": many_special_tokens,
    "decoder that makes texts long": tokenizer(
        decoder={"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10_000_000}
    ),
    "tokenizer of twenty million lists": file(TOKENIZER, '{"a":[' + "[]," * 20_000_000 + "[]]}"),
    "extra tokens by the thousands": json_file(
        "tokenizer_config.json", extra_special_tokens=[f"<{n}>" for n in range(20_000)]
    ),
    "extra token of 2,000 letters": json_file("tokenizer_config.json", extra_special_tokens=["a" * 2000]),
    "end token of 2,000 letters": json_file("tokenizer_config.json", eos_token="a" * 2000),
    "added token with a large id": json_file(
        "tokenizer_config.json", added_tokens_decoder={"10000000000": {"content": "<x>", "special": True}}
    ),
    "map of special tokens by the thousands": file(
        "special_tokens_map.json", json.dumps({"additional_special_tokens": [f"<{n}>" for n in range(20_000)]})
    ),
    "added tokens in a file of their own by the thousands": file(
        "added_tokens.json", json.dumps({f"<{n}>": 400 + n for n in range(20_000)})
    ),
    "added tokens with large ids": file("added_tokens.json", json.dumps({"<x>": 10**12})),
    "added tokens nested 100,000 deep": file("added_tokens.json", "[" * 100_000 + "]" * 100_000),
    "tokenizer for newer libraries": versioned("tokenizer.4.0.0.json"),
    "tokenizer for newer libraries out of the folder": json_file(
        "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.0.json"]
    ),
    "old vocabulary of long tokens": in_order(
        without_file("vocab.json", json.dumps({"a" * 200_000: 0, "<eos>": 1})), file("merges.txt", "#version: 0.2\n")
    ),
    "SentencePiece model that is none": without_file("tokenizer.model", b"\xff" * 10_000),
    "SentencePiece model of 40 MB": without_file("tokenizer.model", b"\0" * 40_000_000),
}

# tokenizers that are refused only after seconds: the time limit of a trial, or their size
SLOW_TOKENIZERS = {
    "pattern that takes squares",
    "pattern with large counts",
    "replacement of a letter by 100,000",
    "replacements one after the other",
    "replacement of an odd letter",
    "text that is put in front",
    "words of any length",
    "vocabulary of a million and a half",
    "decoder that makes texts long",
    "tokenizer of twenty million lists",
}
