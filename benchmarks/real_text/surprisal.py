"""The token probabilities of a plain language model as a scorer: a baseline without preference data."""

from __future__ import annotations

from pathlib import Path

from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import load_model, load_tokenizer
from redline_model.bundle.make_encoder import make_encoder
from redline_model.options import Extraction, Template
from redline_model.scorers.sft import SFTScorer


def surprisal_scorer(base: Path, options: LoadOptions, max_tokens: int) -> SFTScorer:
    """The model at ``base``; prompts are formatted as for a policy."""
    tokenizer = load_tokenizer(base)
    model = load_model(base, "sft", options)
    encoder = make_encoder("sft", model.config, tokenizer, Template.of_policy(tokenizer), max_tokens)
    return SFTScorer.from_model(model, encoder, Extraction(mode="probability"))
