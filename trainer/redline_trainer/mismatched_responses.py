"""Adds a response to another prompt to each pair, so that a model learns that a response must fit its prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import EncodedItem
from redline_trainer.encode_pairs import EncodedPair

_MAX_CANDIDATES = 1000


def with_mismatched_responses(pairs: Sequence[EncodedPair], encoder: Encoder, seed: int) -> list[EncodedPair]:
    """``pairs``, each with the chosen response of a randomly selected pair that has another prompt.

    The pairs are put into one random cycle. Each gets the response of the next pair in the cycle that has another
    prompt and is not too long for the model. A pair gets none if all pairs have the same prompt, or if none of the
    1,000 pairs that follow it in the cycle can be used.
    """
    order = list(range(len(pairs)))
    # the seed string must not change, because it determines the training data
    random.Random(f"{seed}/strays").shuffle(order)
    if len({pair.prompt_key for pair in pairs}) < 2:
        return [pair._replace(mismatched=None) for pair in pairs]
    position = {n: index for index, n in enumerate(order)}
    result = []
    for n, pair in enumerate(pairs):
        following = (
            order[(position[n] + step) % len(order)] for step in range(1, min(len(order), _MAX_CANDIDATES + 1))
        )
        candidates = (_mismatched(pair, pairs[other], encoder) for other in following)
        result.append(pair._replace(mismatched=next((item for item in candidates if item is not None), None)))
    return result


def _mismatched(pair: EncodedPair, other: EncodedPair, encoder: Encoder) -> EncodedItem | None:
    """The chosen response of ``other`` with the prompt of ``pair``; None for equal prompts or if it is too long."""
    if other.prompt_key == pair.prompt_key:
        return None
    source = other.chosen
    # seq2seq models read the mismatched response and then the chosen one; other kinds read only the mismatched one
    target = source if encoder.arrangement == "prompt_response" else pair.chosen
    parts = (pair.chosen.prefix_ids, source.response_ids, source.instruction_ids, target.target_ids)
    fits = encoder.max_tokens is None or encoder.length(*map(len, parts)) <= encoder.max_tokens
    return replace(source, prefix_ids=pair.chosen.prefix_ids) if fits else None


def with_shortened_responses(pairs: Sequence[EncodedPair], seed: int) -> list[EncodedPair]:
    """``pairs``, each with its chosen response cut at a random token, as a finished response.

    A response of one token cannot be cut, and gets none.
    """
    result = []
    for pair in pairs:
        ids = pair.chosen.response_ids
        rng = random.Random(f"{seed}/shortened/{pair.number}")
        item = replace(pair.chosen, response_ids=ids[: rng.randint(1, len(ids) - 1)]) if len(ids) > 1 else None
        result.append(pair._replace(shortened=item))
    return result
