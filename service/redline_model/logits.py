"""Logits at chosen positions only: nothing of shape (batch, length, vocabulary) is ever built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Rows times vocabulary of one chunk of logits: 64 MiB in float32.
_CHUNK_ELEMENTS = 2**24


class TargetLogits:
    """The logits of a causal language model at the positions that predict target tokens.

    The head is applied to the gathered hidden rows, with the scalings that transformers' causal models know.
    Whether that reproduces the model's own logits is measured once, on a probe; a model whose head is
    different takes the slow road of full logits instead of giving wrong numbers.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._head = model.get_output_embeddings()
        config = model.config
        self._softcap = getattr(config, "final_logit_softcapping", None)
        self._multiplier = getattr(config, "logit_scale", None) or 1.0
        self._divisor = getattr(config, "logits_scaling", None) or 1.0
        self.applies_head_itself = self._head_is_understood()

    def _apply_head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden.to(self._head.weight.dtype)) * self._multiplier / self._divisor
        if self._softcap:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    @torch.no_grad()
    def _head_is_understood(self) -> bool:
        model = self._model
        if self._head is None or model.base_model is model:
            return False
        # One pass gives both sides, so dropout does not matter and the mode stays as it is: an inference-mode
        # pass would make bitsandbytes repack 4-bit weights into a form without gradients on some CPUs.
        out = model(
            input_ids=torch.tensor([[1, 2, 0, 1]], device=model.device),
            output_hidden_states=True,
            use_cache=False,
        )
        theirs = out.logits.float()
        ours = self._apply_head(out.hidden_states[-1]).float()
        return bool(torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max() + 1e-6)))

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self._model.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return hidden

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, columns: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield ``(part of the N targets, logits (n, V))`` in chunks.

        Args:
            input_ids, attention_mask: ``(B, L)``; True (1) marks a real token.
            rows, columns: ``(N,)`` each, the batch row and position whose output predicts each target.
        """
        if self.applies_head_itself:
            hidden = self._hidden(input_ids, attention_mask)[rows, columns]
        else:
            hidden = self._model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[
                rows, columns
            ]
        vocabulary = self._model.config.get_text_config().vocab_size
        step = max(1, _CHUNK_ELEMENTS // vocabulary)
        for start in range(0, len(hidden), step):
            part = slice(start, min(start + step, len(hidden)))
            yield part, self._apply_head(hidden[part]) if self.applies_head_itself else hidden[part]
