"""A plain language model: token rewards from ``log pi(y_t | x, y_<t)``, with no response in the context.

The model is fitted to the chosen responses by maximum likelihood, or it is any causal language model as it is. It has
the extraction modes of ``seq2seq`` that are functions of token statistics; here they are those of ``pi(. | x, y_<t)``.
Prompts are laid out as a policy reads them, and the bundle's folder is a policy. It is the baseline that shows what a
model gains by reading the response first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from redline_model.correction.rewriter import Correction
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import EncodedItem
from redline_model.errors import UnsupportedError
from redline_model.extraction import TokenStatistics
from redline_model.inference.target_logits import CausalTargets, response_only
from redline_model.inference.token_statistics import start_token_statistics
from redline_model.kinds import KindSpec
from redline_model.options import STATISTICS_MODES, Extraction, Mode
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse
from redline_model.scorers._direct import DirectScorer
from redline_model.scorers._statistics import rewards_of


class SFTScorer(DirectScorer[TokenStatistics]):
    """Scores with the probabilities of the response's tokens. See ``redline_model.scorer.Scorer``.

    Raises:
        UnsupportedError: a default mode of ``extraction`` is not one of this kind.
    """

    kind = "sft"
    modes: tuple[Mode, ...] = STATISTICS_MODES

    def __init__(self, model: Any, encoder: Encoder, extraction: Extraction, forward: CausalTargets) -> None:
        for mode in (extraction.mode, extraction.score_mode):
            if mode is not None and mode not in self.modes:
                raise UnsupportedError(f"a sft model has no mode {mode}; it offers {', '.join(self.modes)}")
        super().__init__(model, encoder, extraction, forward)

    @torch.inference_mode()
    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[TokenStatistics]]:
        """See ``Scorer``; token statistics ``(T,)`` on the CPU for each item."""
        return start_token_statistics(self._forward, [response_only(item) for item in items])

    def to_rewards(
        self, output: TokenStatistics, spec: RewardSpec, correction: Correction | None = None
    ) -> ScoredResponse:
        """See ``Scorer``."""
        return rewards_of(output, spec, self.extraction)


KIND = KindSpec(
    description="A language model that reads a prompt and writes a response. Each token is rewarded by its probability "
    "after the tokens before it; the response itself is not in the context.",
    architecture="causal_lm",
    make_scorer=SFTScorer.from_model,
    contents="The folder is an ordinary transformers model, usable as a policy;",
    mode="`{mode}`",
    reads_as_policy=True,
    aggregate="mean",
)
