"""Corrections: whatever is drafted, what is written is plain greedy generation."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from redline_model.correction.drafting import Draft
from redline_model.correction.rewriter import Correction, PackedRewriter, PaddedRewriter
from redline_model.encoding.encoder import EncodedItem, Item
from redline_model.extraction import divergence
from redline_model.inference.target_logits import source_of
from redline_model.scorer import Scorer, correct_all
from redline_model.scorers.seq2seq import Seq2SeqScorer
from tests.conftest import build_causal, build_scorer, build_tokenizer

PROMPTS = ["How do I reset my router?", "Summarise: the cat sat on the mat."]
TEXTS = ["Hold the round button.", "I am sorry.", "世界 🙂", "To reset", "Hold"]


def plain_greedy(scorer: Scorer[Any], item: EncodedItem) -> Correction:
    """Token by token from nothing, each by a full pass of its own."""
    k = divergence(scorer.forward([item])[0].agrees)
    known = len(item.target_ids) if k is None else k + 1
    room = 2 * len(item.response_ids) + 32
    model, source, end = scorer.model, source_of(item), scorer.encoder.end_id
    start = [model.generation_config.decoder_start_token_id] if model.config.is_encoder_decoder else []
    if scorer.encoder.max_tokens is not None:
        room = min(room, scorer.encoder.max_tokens - known - (0 if start else len(source)))
    written: list[int] = []
    while len(written) < known + max(0, room) and end not in written:
        with torch.no_grad():
            if start:
                out = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[*start, *written]]))
            else:
                out = model(input_ids=torch.tensor([[*source, *written]]))
        written.append(int(out.logits[0, -1].argmax()))
    is_complete = written[-1] == end
    return Correction(scorer.encoder.decode(written[:-1] if is_complete else written), is_complete)


def items(scorer: Scorer[Any]) -> list[EncodedItem]:
    return [scorer.encoder.encode(Item(prompt, text)) for prompt in PROMPTS for text in TEXTS]


@pytest.mark.parametrize("architecture", ["causal_scorer", "encoder_decoder_scorer"])
def test_a_correction_is_the_plain_greedy_output(architecture: str, request: pytest.FixtureRequest) -> None:
    scorer: Scorer[Any] = request.getfixturevalue(architecture)
    some = items(scorer)
    together = [correction for _, correction in correct_all(scorer, some)]
    assert together == [plain_greedy(scorer, item) for item in some]


def test_a_warm_prompt_changes_nothing(plain_tokenizer: Any) -> None:
    model = build_causal(len(plain_tokenizer))
    scorer = build_scorer("seq2seq", model, plain_tokenizer, prefix_cache_tokens=4096)
    some = items(scorer)
    expected = [plain_greedy(scorer, item) for item in some]
    for _ in range(2):
        assert [correction for _, correction in correct_all(scorer, some)] == expected


class Oracle(Draft):
    """Drafts the true continuation, each token spoilt with some probability."""

    def __init__(self, truth: list[int], spoilt: float, seed: int) -> None:
        super().__init__([], 0)
        self._truth, self._spoilt, self._random = truth, spoilt, random.Random(seed)
        self.written = 0

    def propose(self, room: int) -> list[int]:
        ahead = self._truth[self.written : self.written + min(self._random.randint(0, 9), room)]
        return [(i + 1) % 90 if self._random.random() < self._spoilt else i for i in ahead]

    def learn(self, proposed: int, accepted: int, written: int) -> None:
        self.written += accepted + 1


@pytest.mark.parametrize("spoilt", [0.0, 0.3, 1.0])
def test_any_draft_leads_to_the_same_text_and_a_good_one_sooner(causal_scorer: Scorer[Any], spoilt: float) -> None:
    assert isinstance(causal_scorer, Seq2SeqScorer)
    some = items(causal_scorer)
    expected = [plain_greedy(causal_scorer, item) for item in some]
    rewriter = causal_scorer.rewriter()
    assert isinstance(rewriter, PackedRewriter)
    tickets = [ticket for ticket, _ in rewriter.start(some)]
    lengths = []
    for ticket, item in zip(tickets, some, strict=True):
        if ticket not in rewriter._active:
            continue
        rewrite = rewriter._active[ticket]
        source = torch.tensor([[*source_of(item), *rewrite.written]])
        out = causal_scorer.model.generate(source, max_new_tokens=rewrite.limit - len(rewrite.written))
        truth = [int(i) for i in out[0, source.shape[1] :]]
        lengths.append(len(truth))
        rewrite.draft = Oracle(truth, spoilt, seed=ticket)
    written: dict[int, Correction] = {}
    steps = 0
    while len(written) < len(some):
        written |= rewriter.advance(rewriter.active())
        steps += 1
    assert [written[t] for t in tickets] == expected
    assert rewriter.tokens == 0
    if spoilt == 0.0:
        assert steps < max(lengths) / 2
    if spoilt == 1.0:
        assert steps >= max(lengths)


def test_rewrites_may_join_and_leave_at_any_time(causal_scorer: Scorer[Any]) -> None:
    some = items(causal_scorer)
    expected = [plain_greedy(causal_scorer, item) for item in some]
    rewriter = causal_scorer.rewriter()
    tickets: list[int] = []
    written: dict[int, Correction] = {}
    for item in some:
        tickets += [ticket for ticket, _ in rewriter.start([item])]
        written |= rewriter.advance(rewriter.active())
    dropped = [t for t in tickets if t not in written][-1]
    rewriter.drop(dropped)
    while len(written) < len(some) - 1:
        written |= rewriter.advance(rewriter.active())
    assert dropped not in written
    assert all(written[t] == expected[i] for i, t in enumerate(tickets) if t != dropped)


def test_a_correction_ignores_the_base_s_own_generation_settings() -> None:
    tokenizer = build_tokenizer()
    plain = build_scorer("seq2seq", build_causal(len(tokenizer)), tokenizer)
    model = build_causal(len(tokenizer))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.suppress_tokens = list(range(50, 300))
    odd = build_scorer("seq2seq", model, tokenizer)
    assert isinstance(odd, Seq2SeqScorer)
    whole = PaddedRewriter(odd.model, odd._forward, odd.encoder)
    for item in items(plain)[:5]:
        (ticket, _), *_ = whole.start([item])
        assert whole.advance(whole.active()) == [(ticket, correct_all(plain, [item])[0][1])]


SOURCE = list(range(100, 130))


def replay(rewrite: list[int], source: list[int] = SOURCE, start: int = 0) -> int:
    """Steps that a draft over ``source`` needs for a model that writes ``rewrite``."""
    draft = Draft(source, start)
    draft.learn(0, 0, rewrite[0])
    written, steps = 1, 0
    while written < len(rewrite):
        guess = draft.propose(1000)
        accepted = 0
        while accepted < len(guess) and rewrite[written + accepted : written + accepted + 1] == [guess[accepted]]:
            accepted += 1
        own = rewrite[min(written + accepted, len(rewrite) - 1)]
        draft.learn(len(guess), accepted, own)
        written += accepted + 1
        steps += 1
    return steps


@pytest.mark.parametrize(
    "rewrite",
    [
        [7, *SOURCE[1:]],  # one token replaced
        [*SOURCE[1:]],  # dropped
        [7, *SOURCE],  # put in
        [7, 8, 9, *SOURCE[2:]],
        [*SOURCE[:10], 7, *SOURCE[11:20], *SOURCE[22:]],
    ],
)
def test_a_draft_finds_its_place_again(rewrite: list[int]) -> None:
    assert replay(rewrite) <= len(rewrite) / 2


def test_a_draft_ends_with_its_source() -> None:
    draft = Draft(SOURCE, len(SOURCE))
    for _ in range(40):
        assert draft.propose(10) == []
        draft.learn(0, 0, 5)
