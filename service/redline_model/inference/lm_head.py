"""Logits at chosen positions only, chunk by chunk: nothing of shape (batch, length, vocabulary) is ever built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from redline_model.inference.probes import differs, without_dropout

# Rows times vocabulary of one chunk of logits: 32 MiB in float32, enough rows for a fast matrix product.
_CHUNK_ELEMENTS = 2**23


class Projection(Protocol):
    """From rows ``(N, width)`` to logits ``(N, V)``, one chunk of rows at a time."""

    def row_chunks(self, rows: int) -> Iterator[slice]:
        """Slices that divide ``rows`` rows into chunks."""
        ...

    def project(self, hidden: Tensor) -> Tensor:
        """Logits ``(n, V)`` of rows ``(n, width)``."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """The weights that ``project`` uses."""
        ...


class IdentityProjection:
    """The projection of rows that are logits already. See ``Projection``."""

    def row_chunks(self, rows: int) -> Iterator[slice]:
        """All rows as one chunk."""
        yield slice(0, rows)

    def project(self, hidden: Tensor) -> Tensor:
        """The rows, unchanged."""
        return hidden

    def parameters(self) -> list[nn.Parameter]:
        """None."""
        return []


class LMHead:
    """The vocabulary projection of a language model, applied to gathered hidden rows.

    It applies the scalings that transformers' models apply after the projection. ``is_verified``: whether ``probed``
    found that it reproduces the model's own logits; if not, full logits have to be computed.
    """

    @classmethod
    def probed(cls, model: Any) -> LMHead:
        """The projection of ``model``; runs the model on a probe and compares logits."""
        head = cls(model)
        head.is_verified = head._head is not None and head._reproduces(model)
        return head

    def __init__(self, model: Any) -> None:
        self._head = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._softcap = getattr(config, "final_logit_softcapping", None)
        self._scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        self._bias = getattr(model, "final_logits_bias", None)
        self._rows = max(1, _CHUNK_ELEMENTS // config.vocab_size)
        self.is_verified = False

    def chunks(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield ``(part of the N rows, logits (n, V))`` for hidden rows ``(N, hidden)``."""
        for part in self.row_chunks(len(hidden)):
            yield part, self.project(hidden[part])

    def row_chunks(self, rows: int) -> Iterator[slice]:
        """Slices that divide ``rows`` rows into chunks."""
        for start in range(0, rows, self._rows):
            yield slice(start, min(start + self._rows, rows))

    def parameters(self) -> list[nn.Parameter]:
        """The projection's own weights; the bias that some models add after it is never trained."""
        return list(self._head.parameters())

    def project(self, hidden: Tensor) -> Tensor:
        """Logits ``(n, V)`` of hidden rows ``(n, hidden)``."""
        logits: Tensor = self._head(hidden.to(self._head.weight.dtype))
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._bias is not None:
            logits = logits + self._bias.to(logits.dtype)
        if self._softcap:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    @contextmanager
    def capture_inputs(self) -> Iterator[list[Tensor]]:
        """Collect the inputs of the projection in the list; inside the context the projection itself gets no rows."""
        captured: list[Tensor] = []

        def capture(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            captured.append(args[0])
            return (args[0][:, :0],)

        handle = self._head.register_forward_pre_hook(capture)
        try:
            yield captured
        finally:
            handle.remove()

    @torch.no_grad()
    def _reproduces(self, model: Any) -> bool:
        ids = torch.tensor([[1, 2, 0, 1]], device=model.device)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        elif model.base_model is model:
            return False  # no body to take hidden states from
        else:
            inputs["output_hidden_states"] = True
        with without_dropout(model):
            output = model(**inputs)
            if model.config.is_encoder_decoder:
                with self.capture_inputs() as captured:
                    model(**inputs)
                hidden = captured[0]
            else:
                hidden = output.hidden_states[-1]
            return not differs(self.project(hidden), output.logits, model)
