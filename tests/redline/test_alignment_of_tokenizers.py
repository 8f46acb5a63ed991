"""Ten thousand random cases over pairs of tokenizer families: no reward is lost, invented or moved away."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from redline import align_rewards, check_offsets, token_spans
from tests.tokenizer_families import TOKENIZERS, tokenizer_of

Span = tuple[int, int]
_CASES = 400  # of each of 25 pairs
_PIECES = [
    *[
        "the",
        "Router",
        "don't",
        "1,024",
        "e.g.",
        "naïve",
        "Köln",
        "ﬁne",
        "½",
        "N°",
        "世界",
        "日本語",
        "한국어",
        "русский",
        "עברית",
        "नमस्ते",
        "🙂",
        "👩\u200d👩\u200d👧",
        "🇩🇪",
        "𝔘𝔫𝔦",
        "ß",
    ],
    *("e\u0301", "a\u0308o\u0308", "\u200b", "\u00a0", "\u3000", "\ufffd", "\ue000", "\x07"),
    *(" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n"),
    *[".", ",", "!", "'", '"', "(", ")", "##", "▁", "Ġ", "</s>", "<|end|>", "<0x41>", "<unk>", "-", "x"],
]


def random_text(rng: random.Random) -> str:
    """Words, marks, white space and single characters of any plane, mixed."""
    parts = []
    for _ in range(rng.randrange(1, 14)):
        if rng.random() < 0.15:
            code = rng.choice(
                [rng.randrange(0x20, 0x3000), rng.randrange(0x10000, 0x20000), rng.randrange(0xE000, 0x110000)]
            )
            parts.append(chr(code))
        else:
            parts.append(rng.choice(_PIECES) + rng.choice(["", " "]))
    return "".join(parts)


def sampled(rng: random.Random, tokenizer: Any) -> list[int]:
    """Ids as a policy might sample them: a text's own, the same with some exchanged, or any at all."""
    kind = rng.random()
    if kind < 0.25:
        return [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 24))]
    ids = list(tokenizer(random_text(rng), add_special_tokens=False)["input_ids"]) or [rng.randrange(len(tokenizer))]
    if kind < 0.5:
        for _ in range(3):
            ids[rng.randrange(len(ids))] = rng.randrange(len(tokenizer))
    if rng.random() < 0.5:
        ids.append(tokenizer.eos_token_id)
    return ids


def rewarded(rng: random.Random, tokenizer: Any, text: str) -> tuple[list[float], list[Span]]:
    """A reward model's rewards on its own tokens of ``text`` and an end token, as a bundle's encoder gives them."""
    offsets = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    spans = [(int(start), int(end)) for start, end in offsets] + [(len(text), len(text))]
    return [rng.choice([0.0, 1.0, -1.0, rng.gauss(0.0, 5.0)]) for _ in spans], spans


def far(span: Span, other: Span, text: str) -> bool:
    """Whether something visible lies between two spans."""
    gap = text[span[1] : other[0]] if span[1] <= other[0] else text[other[1] : span[0]]
    return bool(gap.strip())


def reached(position: int, spans: Sequence[Span], target: Sequence[Span]) -> list[Span]:
    """The target tokens that get some of the source token's reward."""
    lone = [float(n == position) for n in range(len(spans))]
    return [span for span, part in zip(target, align_rewards(lone, spans, target), strict=True) if part != 0.0]


@pytest.mark.parametrize("scorer_name", TOKENIZERS)
@pytest.mark.parametrize("caller", TOKENIZERS)
def test_rewards_between_tokenizers_keep_their_sum_and_position(scorer_name: str, caller: str) -> None:
    scorer, policy = tokenizer_of(scorer_name), tokenizer_of(caller)
    for case in range(_CASES):
        rng = random.Random(f"{scorer_name} {caller} {case}")
        ids = sampled(rng, policy)
        text, target = token_spans(lambda part: policy.decode(part, skip_special_tokens=False), ids)
        assert len(target) == len(ids), case
        assert check_offsets(target, text) is None, (case, text, target)
        rewards, source = rewarded(rng, scorer, text)
        aligned = align_rewards(rewards, source, target)
        assert len(aligned) == len(ids), case
        size = math.fsum(map(abs, rewards))
        assert math.isclose(math.fsum(aligned), math.fsum(rewards), rel_tol=0.0, abs_tol=1e-13 * size), case
        position = rng.randrange(len(source))
        for span in reached(position, source, target):
            assert not far(source[position], span, text), (case, text, source[position], span)


@pytest.mark.parametrize("family", TOKENIZERS)
def test_windowed_spans_equal_those_of_full_prefixes(family: str) -> None:
    tokenizer = tokenizer_of(family)

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    for case in range(300):
        rng = random.Random(f"{family} {case}")
        ids = sampled(rng, tokenizer)
        text = decode(ids)
        expected, start = [], 0
        for count in range(1, len(ids) + 1):
            prefix, end = decode(ids[:count]), start
            while end < min(len(prefix), len(text)) and prefix[: end + 1] == text[: end + 1]:
                end += 1
            is_begun = prefix[:end] == text[:end] and prefix[end : end + 1] == "\ufffd" and end < len(text)
            touched = end + is_begun
            expected.append((start, touched if touched > start else min(start + 1, len(text))))
            start = end
        assert token_spans(decode, ids) == (text, expected), case


def test_spans_of_encoded_text_equal_a_byte_level_tokenizer_s_offsets() -> None:
    tokenizer = tokenizer_of("byte_bpe")
    for case in range(300):
        text = random_text(random.Random(f"own {case}")).replace("\ufffd", "")  # looks like a part of a character
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        result = token_spans(lambda part: tokenizer.decode(part, skip_special_tokens=False), encoded["input_ids"])
        assert result == (text, [tuple(span) for span in encoded["offset_mapping"]]), case


def test_a_long_response_is_decoded_in_linear_time() -> None:
    tokenizer = tokenizer_of("byte_bpe")
    ids = tokenizer("Grüße aus Köln! 世界 🙂 " * 200, add_special_tokens=False)["input_ids"]
    decoded = 0

    def decode(part: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(part)
        return str(tokenizer.decode(part))

    token_spans(decode, ids)
    assert decoded < 40 * len(ids)


def test_a_decoder_that_looks_far_back_is_detected() -> None:
    def decode(ids: Sequence[int]) -> str:
        result = f" {len(ids):04}" if ids[-1] == 26 else ""  # the last token tells how many there were
        return "".join(chr(97 + i) for i in ids if i < 26) + result

    text, spans = token_spans(decode, list(range(27)))
    assert text.endswith("xyz 0027")
    assert spans == [*((n, n + 1) for n in range(26)), (26, 31)]
