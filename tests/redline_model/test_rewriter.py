"""Corrections equal plain greedy generation, whatever the draft proposes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from redline_model.correction.drafting import Draft
from redline_model.correction.rewriter import Correction, PackedRewriter, PaddedRewriter
from redline_model.encoding.items import EncodedItem, Item
from redline_model.extraction import divergence
from redline_model.inference.target_logits import source_ids
from redline_model.scorer import Scorer, correct_all
from redline_model.scorers.seq2seq import Seq2SeqScorer
from tests.conftest import build_causal, build_scorer, build_tokenizer

PROMPTS = ["How do I reset my router?", "Summarise: the cat sat on the mat."]
TEXTS = ["Hold the round button.", "I am sorry.", "世界 🙂", "To reset", "Hold"]


def plain_greedy(scorer: Scorer[Any], item: EncodedItem) -> Correction:
    """Greedy generation token by token, each with a full forward pass."""
    k = divergence(scorer.forward([item])[0].agrees)
    determined = len(item.target_ids) if k is None else k + 1
    room = 2 * len(item.response_ids) + 32
    model, source, end = scorer.model, source_ids(item), scorer.encoder.end_id
    start = [model.generation_config.decoder_start_token_id] if model.config.is_encoder_decoder else []
    if scorer.encoder.max_tokens is not None:
        room = min(room, scorer.encoder.max_tokens - determined - (0 if start else len(source)))
    written: list[int] = []
    while len(written) < determined + max(0, room) and end not in written:
        with torch.no_grad():
            if start:
                out = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[*start, *written]]))
            else:
                out = model(input_ids=torch.tensor([[*source, *written]]))
        written.append(int(out.logits[0, -1].argmax()))
    is_complete = written[-1] == end
    text = scorer.encoder.decode(written[:-1] if is_complete else written)
    return Correction(text, is_complete, tuple(written), tuple(item.target_ids))


def encode_items(scorer: Scorer[Any]) -> list[EncodedItem]:
    return [scorer.encoder.encode(Item(prompt, text)) for prompt in PROMPTS for text in TEXTS]


@pytest.mark.parametrize("architecture", ["causal_scorer", "encoder_decoder_scorer"])
def test_a_correction_equals_plain_greedy_generation(architecture: str, request: pytest.FixtureRequest) -> None:
    scorer: Scorer[Any] = request.getfixturevalue(architecture)
    encoded = encode_items(scorer)
    together = [correction for _, correction in correct_all(scorer, encoded)]
    assert together == [plain_greedy(scorer, item) for item in encoded]


def test_a_cached_prefix_does_not_change_a_correction(plain_tokenizer: Any) -> None:
    model = build_causal(len(plain_tokenizer))
    scorer = build_scorer("seq2seq", model, plain_tokenizer, prefix_cache_tokens=4096)
    encoded = encode_items(scorer)
    expected = [plain_greedy(scorer, item) for item in encoded]
    for _ in range(2):
        assert [correction for _, correction in correct_all(scorer, encoded)] == expected


class Oracle(Draft):
    """Drafts the true continuation, in which each token is replaced with probability ``error_rate``."""

    def __init__(self, continuation: list[int], error_rate: float, seed: int) -> None:
        super().__init__([], 0)
        self._continuation, self._error_rate, self._random = continuation, error_rate, random.Random(seed)
        self.written = 0

    def propose(self, room: int) -> list[int]:
        ahead = self._continuation[self.written : self.written + min(self._random.randint(0, 9), room)]
        return [(i + 1) % 90 if self._random.random() < self._error_rate else i for i in ahead]

    def update(self, proposed: int, accepted: int, written: int) -> None:
        self.written += accepted + 1


@pytest.mark.parametrize("error_rate", [0.0, 0.3, 1.0])
def test_any_draft_gives_the_same_text_and_a_good_draft_needs_fewer_steps(
    causal_scorer: Scorer[Any], error_rate: float
) -> None:
    assert isinstance(causal_scorer, Seq2SeqScorer)
    encoded = encode_items(causal_scorer)
    expected = [plain_greedy(causal_scorer, item) for item in encoded]
    rewriter = causal_scorer.rewriter()
    assert isinstance(rewriter, PackedRewriter)
    rewrite_ids = [rewrite_id for rewrite_id, _ in rewriter.start(encoded)]
    lengths = []
    for rewrite_id, item in zip(rewrite_ids, encoded, strict=True):
        if rewrite_id not in rewriter._active:
            continue
        rewrite = rewriter._active[rewrite_id]
        source = torch.tensor([[*source_ids(item), *rewrite.written]])
        out = causal_scorer.model.generate(source, max_new_tokens=rewrite.limit - len(rewrite.written))
        continuation = [int(i) for i in out[0, source.shape[1] :]]
        lengths.append(len(continuation))
        rewrite.draft = Oracle(continuation, error_rate, seed=rewrite_id)
    written: dict[int, Correction] = {}
    steps = 0
    while len(written) < len(encoded):
        written |= rewriter.advance(rewriter.active())
        steps += 1
    assert [written[t] for t in rewrite_ids] == expected
    assert rewriter.tokens == 0
    if error_rate == 0.0:
        assert steps < max(lengths) / 2
    if error_rate == 1.0:
        assert steps >= max(lengths)


def test_rewrites_can_be_added_and_cancelled_at_any_time(causal_scorer: Scorer[Any]) -> None:
    encoded = encode_items(causal_scorer)
    expected = [plain_greedy(causal_scorer, item) for item in encoded]
    rewriter = causal_scorer.rewriter()
    rewrite_ids: list[int] = []
    written: dict[int, Correction] = {}
    for item in encoded:
        rewrite_ids += [rewrite_id for rewrite_id, _ in rewriter.start([item])]
        written |= rewriter.advance(rewriter.active())
    cancelled = [t for t in rewrite_ids if t not in written][-1]
    rewriter.cancel(cancelled)
    while len(written) < len(encoded) - 1:
        written |= rewriter.advance(rewriter.active())
    assert cancelled not in written
    assert all(written[t] == expected[i] for i, t in enumerate(rewrite_ids) if t != cancelled)


def test_a_correction_ignores_the_base_model_s_generation_settings() -> None:
    tokenizer = build_tokenizer()
    plain = build_scorer("seq2seq", build_causal(len(tokenizer)), tokenizer)
    model = build_causal(len(tokenizer))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.suppress_tokens = list(range(50, 300))
    penalized = build_scorer("seq2seq", model, tokenizer)
    assert isinstance(penalized, Seq2SeqScorer)
    rewriter = PaddedRewriter(penalized.model, penalized._forward, penalized.encoder)
    for item in encode_items(plain)[:5]:
        (rewrite_id, _), *_ = rewriter.start([item])
        assert rewriter.advance(rewriter.active()) == [(rewrite_id, correct_all(plain, [item])[0][1])]


SOURCE = list(range(100, 130))


def replay(rewrite: list[int], source: list[int] = SOURCE, start: int = 0) -> int:
    """The number of steps that a draft over ``source`` needs for a model that writes ``rewrite``."""
    draft = Draft(source, start)
    draft.update(0, 0, rewrite[0])
    written, steps = 1, 0
    while written < len(rewrite):
        proposed = draft.propose(1000)
        accepted = 0
        while accepted < len(proposed) and rewrite[written + accepted : written + accepted + 1] == [proposed[accepted]]:
            accepted += 1
        model_token = rewrite[min(written + accepted, len(rewrite) - 1)]
        draft.update(len(proposed), accepted, model_token)
        written += accepted + 1
        steps += 1
    return steps


@pytest.mark.parametrize(
    "rewrite",
    [
        [7, *SOURCE[1:]],  # one token replaced
        [*SOURCE[1:]],  # dropped
        [7, *SOURCE],  # inserted
        [7, 8, 9, *SOURCE[2:]],
        [*SOURCE[:10], 7, *SOURCE[11:20], *SOURCE[22:]],
    ],
)
def test_a_draft_continues_after_an_edit(rewrite: list[int]) -> None:
    assert replay(rewrite) <= len(rewrite) / 2


def test_a_draft_is_empty_after_the_end_of_its_source() -> None:
    draft = Draft(SOURCE, len(SOURCE))
    for _ in range(40):
        assert draft.propose(10) == []
        draft.update(0, 0, 5)
