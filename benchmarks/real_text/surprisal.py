"""The token probabilities of a plain language model as a scorer: a baseline without preference data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import load_model, load_tokenizer
from redline_model.bundle.make_encoder import make_encoder
from redline_model.encoding.items import EncodedItem
from redline_model.extraction import TokenStatistics
from redline_model.inference.target_logits import response_only
from redline_model.options import Extraction, Template
from redline_model.scorers.seq2seq import Seq2SeqScorer


class SurprisalScorer(Seq2SeqScorer):
    """Statistics of ``pi(y_t | x, y_<t)``: unlike a seq2seq reward model, it does not get the response first."""

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[TokenStatistics]]:
        """See ``Seq2SeqScorer``."""
        return super().start_forward([response_only(item) for item in items])


def surprisal_scorer(base: Path, device: str, max_tokens: int) -> SurprisalScorer:
    """The model at ``base``; prompts are formatted as for a policy."""
    tokenizer = load_tokenizer(base)
    model = load_model(base, "dpo", LoadOptions(device=device))
    encoder = make_encoder("dpo", model.config, tokenizer, Template.of_policy(tokenizer), max_tokens)
    return SurprisalScorer.from_model(model, encoder, Extraction(mode="probability"))
