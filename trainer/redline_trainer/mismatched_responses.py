"""Responses of other prompts beside a pair's own: what teaches a model that a response must fit its prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from redline_model.encoding.encoder import EncodedItem, Encoder
from redline_trainer.encode_pairs import EncodedPair

_MAX_CANDIDATES = 1000


def with_mismatched_responses(pairs: Sequence[EncodedPair], encoder: Encoder, seed: int) -> list[EncodedPair]:
    """``pairs``, each with the chosen response of a pair drawn among those of other prompts.

    The pairs are put into one random cycle, and each gets the response of the next pair that has another prompt and
    is not too long for the model. A pair gets none if all pairs have one prompt, or if none of the 1,000 pairs that
    follow it in the cycle can be used.
    """
    order = list(range(len(pairs)))
    # the seed string decides training data: it keeps its value
    random.Random(f"{seed}/strays").shuffle(order)
    if len({pair.prompt_key for pair in pairs}) < 2:
        return [pair._replace(mismatched=None) for pair in pairs]
    place = {n: at for at, n in enumerate(order)}
    result = []
    for n, pair in enumerate(pairs):
        following = (order[(place[n] + ahead) % len(order)] for ahead in range(1, min(len(order), _MAX_CANDIDATES + 1)))
        candidates = (_mismatched(pair, pairs[other], encoder) for other in following)
        result.append(pair._replace(mismatched=next((item for item in candidates if item is not None), None)))
    return result


def _mismatched(pair: EncodedPair, other: EncodedPair, encoder: Encoder) -> EncodedItem | None:
    """The chosen response of ``other`` behind the prompt of ``pair``; None if it is the same prompt or too long."""
    if other.prompt_key == pair.prompt_key:
        return None
    source = other.chosen
    # a rewriting model reads the mismatched response and then writes the chosen one; a judging model reads it alone
    target = source if encoder.arrangement == "prompt_response" else pair.chosen
    pieces = (pair.chosen.prefix_ids, source.response_ids, source.instruction_ids, target.target_ids)
    fits = encoder.max_tokens is None or encoder.length(*map(len, pieces)) <= encoder.max_tokens
    return replace(source, prefix_ids=pair.chosen.prefix_ids) if fits else None
