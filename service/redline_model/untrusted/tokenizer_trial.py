"""Trial script: read and use a tokenizer file in a limited process (``redline_model.untrusted.trial_process``).

A tokenizer file can have regular expressions that backtrack forever, replacements that make a text thousands of times
longer, and tables that crash the library. So it is read and used here first, on texts that are known to be hard.
Imports only tokenizers and the standard library.

Not detected: a rule that is slow or crashes only for other kinds of text than these.
"""

from __future__ import annotations

import json
import random
import re
import time
from itertools import pairwise
from typing import Any

_SIZES = (300, 4096)  # characters of a text
_SUSPICIOUS_S = 0.015  # of processor time for the longest of them; a slower text is tried again, 8 times as long
_REPEATS = 8
_MAX_DECODED_IDS = 2000
_PATTERN_CHARACTERS = 12  # of a tokenizer's own patterns that are repeated in test texts


_UNITS = ["a", " ", "\n", "0", ".", "A", "\t", "_", "é", "中", "\u0301", "\ufdfa", "🙂", "\u00a0", "\ue000"]
_UNITS += ["aA", "a ", " a", "a1", "\r\n", " \n", "a.", "-- ", "'s", "ab", "a\u0301\u0316", "中 ", "👩\u200d", "<s>"]


def common_texts(size: int) -> list[str]:
    """Texts of ``size`` characters each that tokenizers are known to find hard."""
    runs = [(unit * size)[:size] for unit in _UNITS]
    almost_uniform = [run[:-1] + end for run in (runs[0], runs[1], runs[3]) for end in ("!", "\n", "a", " ")]
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz      ABCXYZ0123456789.,;:!?'\"()-\n\téßжд中日한ا🙂"
    mixed = "".join(rng.choice(letters) for _ in range(size))
    return [*runs, *almost_uniform, mixed, "".join(chr(rng.randrange(0x20, 0xD7FF)) for _ in range(size))]


def pattern_texts(patterns: list[str], added: list[str], size: int) -> list[str]:
    """Texts that repeat the characters of a tokenizer's own patterns and added tokens.

    Each ends with a character that matches nothing and then all characters of the patterns: some expressions are only
    evaluated if the text contains one of these.
    """
    characters = list(
        dict.fromkeys(c for text in patterns for c in re.sub(r"\\.", "", text) if c not in "()[]{}|*+?^$")
    )
    characters_used = characters[:_PATTERN_CHARACTERS]
    units = [*characters_used, *(a + b for a, b in pairwise(characters_used)), *(text[:100] for text in patterns[:8])]
    units += [text[:100] for text in added[:4]]
    if patterns:
        units += _UNITS
    end = "\x01" + "".join(characters_used)
    return [(unit * size)[: max(1, size - len(end))] + end for unit in units if unit]


def find_patterns(*parts: Any) -> list[str]:
    """The patterns, and the texts to be replaced, inside normalizers, pre-tokenizers and decoders."""
    texts: list[str] = []
    pending = [json.loads(part.__getstate__()) for part in parts if part is not None]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            pattern = part.get("pattern")
            if isinstance(pattern, dict):
                texts += [text for text in pattern.values() if isinstance(text, str)]
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return texts


def trial(task: dict[str, Any]) -> str | None:
    """The reason why a tokenizer file is refused, None if it is not.

    Args:
        task: ``file``, or ``text`` as a tokenizer's own serialisation; ``vocabulary`` and ``added``: how many tokens
            it may have; ``token_characters`` and ``special_characters``: how long one may be;
            ``tokens_per_character`` and ``spare_tokens``: how many it may make of a text; ``text_s``: seconds of
            processor time that a text of 32,768 characters may take.

    Raises:
        BaseException: whatever the library raises if it cannot read the file, including panics.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(task["file"]) if "file" in task else Tokenizer.from_str(task["text"])
    size = tokenizer.get_vocab_size()
    if size > task["vocabulary"]:
        return f"it has {size} tokens; a tokenizer may have {task['vocabulary']}"
    vocabulary = tokenizer.get_vocab()
    reason = _size_problem(tokenizer, vocabulary, task)
    if reason is not None:
        return reason
    # Redline uses neither
    tokenizer.no_padding()
    tokenizer.no_truncation()
    patterns = find_patterns(tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    for size in _SIZES:
        for text in [*common_texts(size), *pattern_texts(patterns, added, size)]:
            reason = _text_problem(tokenizer, text, task)
            if reason is not None:
                return reason
    return _decoding_problem(tokenizer, vocabulary, task)


def _size_problem(tokenizer: Any, vocabulary: dict[str, int], task: dict[str, Any]) -> str | None:
    highest = max(vocabulary.values(), default=-1)
    if highest >= task["vocabulary"]:
        return f"it has a token of id {highest}; ids may go up to {task['vocabulary'] - 1}"
    added = tokenizer.get_added_tokens_decoder().values()
    if len(added) > task["added"]:
        return f"it adds {len(added)} tokens to its vocabulary; a tokenizer may add {task['added']}"
    longest = max((len(token.content) for token in added), default=0)
    if longest > task["special_characters"]:
        return f"an added token has {longest} characters; it may have {task['special_characters']}"
    longest = max(map(len, vocabulary), default=0)
    if longest > task["token_characters"]:
        return f"a token has {longest} characters; it may have {task['token_characters']}"
    return None


def _text_problem(tokenizer: Any, text: str, task: dict[str, Any]) -> str | None:
    for is_special in (True, False):
        tokenizer.encode_special_tokens = is_special
        count, seconds = _timed_encode(tokenizer, text)
        if count > task["tokens_per_character"] * len(text) + task["spare_tokens"]:
            return f"it makes {count} tokens of {len(text)} characters"
        if seconds > _SUSPICIOUS_S:
            text = text[:-1] * _REPEATS + text[-1]
            seconds = _timed_encode(tokenizer, text)[1]
            if seconds > task["text_s"]:
                return f"it takes {seconds:.1f} seconds for a text of {len(text)} characters"
        if len(text) > _SIZES[0]:
            break
    return None


def _timed_encode(tokenizer: Any, text: str) -> tuple[int, float]:
    """The number of tokens of ``text``, and the seconds of processor time to encode and decode it."""
    started = time.process_time()
    count = 0
    try:
        encoded = tokenizer.encode(text, add_special_tokens=True)
        count = len(encoded)
        tokenizer.decode(encoded.ids, skip_special_tokens=False)
    except Exception:  # an ordinary error, not a panic: the tokenizer may refuse this text
        return count, 0.0
    return count, time.process_time() - started


def _decoding_problem(tokenizer: Any, vocabulary: dict[str, int], task: dict[str, Any]) -> str | None:
    tokens = list(vocabulary)[:: max(1, len(vocabulary) // _MAX_DECODED_IDS)]
    ids, size = [vocabulary[token] for token in tokens], sum(map(len, tokens))
    try:
        text = tokenizer.decode(ids, skip_special_tokens=False)
    except Exception:
        return None
    if len(text) > task["tokens_per_character"] * size + task["spare_tokens"]:
        return f"it makes a text of {len(text)} characters of {len(ids)} tokens"
    return None
