"""DPO's implicit reward (arXiv 2305.18290): log-probabilities of a policy minus those of its reference model.

``r_t = beta (log pi(y_t | x, y_<t) - log pi_ref(y_t | x, y_<t))``. The sum over t is, up to a term that depends on the
prompt only, the reward whose optimal policy under a KL penalty of ``beta`` is ``pi``. Both models read ``[x, y]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from redline_model.correction.rewriter import Correction
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import EncodedItem
from redline_model.errors import NonFiniteError, UnsupportedError
from redline_model.extraction import aggregate_rewards
from redline_model.inference.planner import Planner, causal_planner
from redline_model.inference.target_logits import CausalTargets, direct_sequence, response_only
from redline_model.inference.token_statistics import start_token_statistics
from redline_model.kinds import BundleReader, KindSpec
from redline_model.options import Extraction, Mode
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse, ScoreOnly

REFERENCE = "reference"  # the sub-folder of a bundle with the reference model, from which the policy was trained


class DPOOutput(NamedTuple):
    """Log-probabilities of the response's tokens, nats, ``(T,)`` each."""

    policy: Tensor
    reference: Tensor


class DPOScorer(ScoreOnly[DPOOutput]):
    """Scores with two causal language models that have the same vocabulary. See ``redline_model.scorer.Scorer``.

    Args:
        models: the policy and its reference model, in evaluation mode.
        forwards: their forward passes.
        beta: reward per nat, above 0.
    """

    kind = "dpo"
    modes: tuple[Mode, ...] = ()

    @classmethod
    def from_model(
        cls,
        model: Any,
        encoder: Encoder,
        extraction: Extraction,
        *,
        reference: Any,
        beta: float,
        prefix_cache_tokens: int = 0,
    ) -> DPOScorer:
        """The scorer around the policy ``model``; runs both models on probes and sets their attention implementation.

        Raises:
            UnsupportedError: the two models do not have the same vocabulary.
        """
        sizes = [m.config.get_text_config().vocab_size for m in (model, reference)]
        if sizes[0] != sizes[1]:
            raise UnsupportedError(f"the policy has {sizes[0]} tokens and its reference {sizes[1]}")
        forwards = (
            CausalTargets.probed(model, prefix_cache_tokens),
            CausalTargets.probed(reference, prefix_cache_tokens),
        )
        return cls((model, reference), encoder, extraction, forwards, beta)

    def __init__(
        self,
        models: tuple[Any, Any],
        encoder: Encoder,
        extraction: Extraction,
        forwards: tuple[CausalTargets, CausalTargets],
        beta: float,
    ) -> None:
        self.models = models
        self.model = models[0]
        self.encoder = encoder
        self.extraction = extraction
        self.beta = beta
        self._policy, self._reference = forwards
        self.planner: Planner = _planner(forwards)

    @torch.inference_mode()
    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[DPOOutput]]:
        """See ``Scorer``; both models' passes are started before either is waited for."""
        items = [response_only(item) for item in items]
        policy, reference = start_token_statistics(self._policy, items), start_token_statistics(self._reference, items)
        return lambda: [
            DPOOutput(of_policy.logprob, of_reference.logprob)
            for of_policy, of_reference in zip(policy(), reference(), strict=True)
        ]

    def to_rewards(self, output: DPOOutput, spec: RewardSpec, correction: Correction | None = None) -> ScoredResponse:
        """The scaled log-ratios. Raises NonFiniteError."""
        rewards = self.beta * (output.policy.double() - output.reference.double())
        if not torch.isfinite(rewards).all():
            raise NonFiniteError("the models' output for this item holds NaN or infinity")
        return ScoredResponse(aggregate_rewards(rewards, spec.aggregate), rewards.tolist(), None)


def _length(item: EncodedItem) -> int:
    """Tokens that each model reads."""
    return len(item.prefix_ids) + len(item.target_ids)


def _planner(forwards: tuple[CausalTargets, CausalTargets]) -> Planner:
    """Passes for both models: padded if either model needs padding, because padded passes also fit a packed model."""
    leader = min(forwards, key=lambda forward: forward.is_packed)
    caches = tuple(forward.forward.cache for forward in forwards if forward.forward is not None)
    return causal_planner(leader.forward, direct_sequence, _length, caches)


def _load(reader: BundleReader) -> DPOScorer:
    model = reader.model()
    return DPOScorer.from_model(
        model,
        reader.encoder(model),
        reader.extraction,
        reference=reader.model(REFERENCE),
        beta=reader.kind_options,
        prefix_cache_tokens=reader.prefix_cache_tokens,
    )


KIND = KindSpec(
    description="A policy fitted by direct preference optimisation (arXiv 2305.18290); each token earns `beta` times "
    "its log-probability against the model that the policy started from, in `reference/`.",
    architecture="causal_lm",
    make_scorer=DPOScorer.from_model,
    load=_load,
    contents="The folder is an ordinary transformers model, the policy, and so is `reference/`;",
    reads_as_policy=True,
)
