"""The linear head of a sequence classifier: which layer it is, and its value at chosen positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from redline_model.encoding.items import EncodedItem
from redline_model.errors import UnsupportedError
from redline_model.inference.causal_forward import CausalForward, PrefixedSequence
from redline_model.inference.probes import differs

SCORE_HEADS = ("score", "classifier")  # names of the head in transformers' models that read the last token


def linear_float32(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``hidden @ weight.T + bias`` in float32, under autocast, too: ``(N, hidden)`` to ``(N, out)``."""
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.float(), weight.float(), None if bias is None else bias.float())


def score_head(model: Any) -> Any:
    """The linear layer that maps a hidden state to one number. Raises UnsupportedError if there is none."""
    for name in SCORE_HEADS:
        head = getattr(model, name, None)
        if getattr(head, "weight", None) is not None:
            return head
    raise UnsupportedError(
        f"{type(model).__name__} has no linear head that reads a score from a token's hidden state "
        f"({' or '.join(SCORE_HEADS)})"
    )


def prompt_and_response(item: EncodedItem) -> PrefixedSequence:
    """``[x, y]``."""
    return PrefixedSequence(tuple(item.prefix_ids), item.target_ids)


class ScalarForward:
    """``r(x, y)`` of a sequence-classification model of one label; used alike for scoring and training.

    Pooling goes by length, not by the pad id: transformers' own pooling looks for the last token that is not
    the pad id, which is wrong if a tokenizer pads with its end token.

    Args:
        head: the linear layer, see ``score_head``.
        causal: the forward pass of the model below it.
    """

    @classmethod
    def probed(cls, model: Any, prefix_cache_tokens: int = 0) -> ScalarForward:
        """See ``CausalForward.probed``: runs ``model`` on a probe and sets its attention implementation.

        Raises:
            UnsupportedError: the model has no such head.
        """
        return cls(score_head(model), CausalForward.probed(model, prefix_cache_tokens))

    def __init__(self, head: Any, causal: CausalForward) -> None:
        self._head = head
        self.causal = causal

    def __call__(self, items: Sequence[EncodedItem]) -> Tensor:
        """The reward of each item ``[x, y]``, ``(B,)`` in float32, read at the last token."""
        return self.apply_head(self.pooled(items))

    def pooled(self, items: Sequence[EncodedItem]) -> Tensor:
        """The hidden state of each item's last token, ``(B, hidden)``."""
        last = [range(len(item.target_ids) - 1, len(item.target_ids)) for item in items]
        return self.causal([prompt_and_response(item) for item in items], last)

    def values(self, sequences: Sequence[PrefixedSequence], positions: Sequence[range]) -> Tensor:
        """The head's value at ``positions`` of the sequences' suffixes, one after the other, ``(N,)`` in float32."""
        return self.apply_head(self.causal(sequences, positions))

    @property
    def head_weight(self) -> Tensor:
        """The head's weights, ``(1, hidden)``."""
        weight: Tensor = self._head.weight
        return weight

    def apply_head(self, hidden: Tensor) -> Tensor:
        """The head's value of hidden states ``(N, hidden)``, ``(N,)``, computed in float32 whatever the weights are."""
        head = self._head
        if not head.weight.is_floating_point():  # quantised: only its own code can interpret the weights
            return head(hidden).squeeze(-1).float()  # type: ignore[no-any-return]
        return linear_float32(hidden, head.weight, getattr(head, "bias", None)).squeeze(-1)


@torch.no_grad()
def check_pooling(model: Any, source: object) -> None:
    """Raise UnsupportedError if ``ScalarForward`` does not reproduce the model's own score.

    ``source``: where the model comes from, for the message.
    """
    text = model.config.get_text_config()
    ids = [token for token in (1 + 7 * n % (text.vocab_size - 1) for n in range(8)) if token != text.pad_token_id]
    expected = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits.reshape(-1)
    item = EncodedItem([], ids, [], ids, [], "")
    if differs(ScalarForward.probed(model)([item]), expected, model):
        raise UnsupportedError(
            f"{source}: {type(model).__name__} does not read its score from the last token by a linear head alone"
        )
