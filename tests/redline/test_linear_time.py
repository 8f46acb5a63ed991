"""Work on text that callers send grows no faster than the text: what doubles takes about twice as long."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence

import pytest

from redline import align_rewards, check_offsets, token_spans
from redline.text.chat_markup import (
    PromptBoundaryError,
    parse_conversation,
    parse_prompt,
    parse_prompt_and_response,
    parse_query_and_prompt,
)
from redline.text.marker_scan import marker_at_end, overlap, skip_leading_space, trailing_space_start

_FRAGMENTS = [
    *("[INST] <<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT] ", "<s>", "</s>", "<pad> ", "[/INST]"),
    *("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>", "<|start|>a", "<|a|>", "<think> ", "</think>"),
    *(" ", "\n", "\u3000", "a", "<", "|", "\n\nHuman: ", "\n\nAssistant: ", "USER: ", "\n\n### Response:\n"),
]
_STARTS = ["", "[INST] <<SYS>>", "<|im_start|>user\n", "<|im_start|>assistant\n<think>"]
_READERS: dict[str, Callable[[str], object]] = {
    "from_whole": parse_conversation,
    "parse_prompt": parse_prompt,
    "from_prompt_and_response": lambda text: parse_prompt_and_response(text, text, has_ends=True),
    "from_query_and_prompt": lambda text: parse_query_and_prompt(text, text),
    "of a query that was cut": lambda text: parse_query_and_prompt(text[1:] + "x", text),
    "of a query that does not fit": lambda text: parse_query_and_prompt("z" + text, text[:-1] + "y" + text),
}


def seconds(work: Callable[[], object]) -> float:
    """Of this process's processor, the least of two tries."""
    took = []
    for _ in range(2):
        started = time.process_time()
        with contextlib.suppress(PromptBoundaryError, ValueError):
            work()
        took.append(time.process_time() - started)
    return min(took)


@pytest.mark.parametrize("reader", _READERS)
def test_reading_conversations_is_linear(reader: str) -> None:
    read = _READERS[reader]
    draw = random.Random(0)
    pairs = [(a, b) for a in _FRAGMENTS for b in _FRAGMENTS]
    for a, b in draw.sample(pairs, 20):
        for start in _STARTS:
            # quadratic work on these would take seconds, cubic work hours
            text = start + (a + b) * (65536 // len(a + b))
            assert seconds(lambda text=text: read(text)) < 1.0, (start, a, b)  # type: ignore[misc]


@pytest.mark.parametrize("fragment", [" ", "<s>"])
def test_double_the_input_takes_about_double_the_time(fragment: str) -> None:
    def took(size: int) -> float:
        text = "[INST] <<SYS>>" + fragment * (size // len(fragment))
        return seconds(lambda: [prompt_of_any(text) for _ in range(3)])

    once, twice = took(200_000), took(400_000)
    assert twice < 3.5 * once + 0.05


def prompt_of_any(text: str) -> None:
    for read in _READERS.values():
        with contextlib.suppress(PromptBoundaryError):
            read(text)


def test_marker_scans_equal_simple_string_operations() -> None:
    draw = random.Random(1)
    for _ in range(500):
        text = "".join(draw.choice([" ", "\n", "a", "\u3000", "<s>"]) for _ in range(draw.randrange(600)))
        at = draw.randrange(len(text) + 1)
        assert trailing_space_start(text, at) == len(text[:at].rstrip())
        assert skip_leading_space(text, at) == at + len(text[at:]) - len(text[at:].lstrip())
        marker = marker_at_end(text, at, ["<s>"])
        assert (marker == "<s>") == text[:at].rstrip().endswith("<s>")


def test_the_overlap_is_the_longest_suffix_that_is_a_prefix() -> None:
    draw = random.Random(2)
    for _ in range(2000):
        before = "".join(draw.choice("ab") for _ in range(draw.randrange(12)))
        after = "".join(draw.choice("ab") for _ in range(draw.randrange(12)))
        longest = max(n for n in range(len(before) + 1) if after.startswith(before[len(before) - n :]))
        assert overlap(before, after) == longest


@pytest.mark.parametrize(
    "target",
    [
        [(0, 20_000)] + [(n, n + 2) for n in range(0, 20_000, 2)],
        [(0, 20_000)] * 79 + [(n, n + 1) for n in range(20_000)],
        [(n // 40, n // 40 + 1) for n in range(20_000 * 40)],
    ],
    ids=["one over all", "79 over all", "40 a character"],
)
def test_alignment_onto_overlapping_tokens_is_linear(target: Sequence[tuple[int, int]]) -> None:
    source = [(n, n + 1) for n in range(20_000)]
    assert seconds(lambda: align_rewards([1.0] * len(source), source, target)) < 5.0


def test_more_tokens_over_a_character_than_it_has_bytes_are_refused() -> None:
    assert check_offsets([(0, 50)] * 80, "a" * 50) is None
    assert "80 tokens over the character" in str(check_offsets([(0, 50)] * 81, "a" * 50))
    assert "more than 80 tokens" in str(check_offsets([(0, 50)] * 80 + [(n, n + 1) for n in range(50)], "a" * 50))


class Decoder:
    """Bytes as UTF-8, a byte an id, counting what it is asked to decode."""

    def __init__(self) -> None:
        self.decoded = 0

    def __call__(self, ids: Sequence[int]) -> str:
        self.decoded += len(ids)
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    "pattern", [b"\xff", b"\xe4\xb8", b"\xf0\x9f", b"\x80", b"a\xff", "世".encode(), "🙂".encode(), b"\xe4a"]
)
def test_spans_of_invalid_bytes_take_linear_time(pattern: bytes) -> None:
    ids = list(pattern * 4000)
    decode = Decoder()
    text, spans = token_spans(decode, ids)
    assert decode.decoded < 60 * len(ids)
    assert len(spans) == len(ids)
    assert spans[-1][1] == len(text)
    short = list(pattern * 30)
    by_prefixes = [len(bytes(short[: n + 1]).decode(errors="replace").rstrip("\ufffd")) for n in range(len(short))]
    assert all(end >= least for (_, end), least in zip(token_spans(Decoder(), short)[1], by_prefixes, strict=True))


def test_many_ids_whose_text_depends_on_distant_ids_are_refused() -> None:
    def decode(ids: Sequence[int]) -> str:
        return "x" * len(ids) if 9 in ids else "".join(map(str, ids))

    token_spans(decode, [*[1, 2, 3] * 100, 9])
    with pytest.raises(ValueError, match="distant ids"):
        token_spans(decode, [*[1, 2, 3] * 1000, 9])
