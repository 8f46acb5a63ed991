"""Prepares a causal language model for PPO and tests with short forward passes how it may be padded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from redline.causal_lm.rotary import longest_shared
from redline.errors import PolicyError

# The side that may be padded without changing any log-probability. "none": each sequence has its own pass.
Padding = Literal["left", "right", "none"]
_PROBE_TOKENS, _PROBE_PADDING = 12, 5


class PreparedModel(NamedTuple):
    """Properties of a model that ``prepare_model`` has found, and settings that it has replaced.

    ``end_ids``: tokens that end a response.
    ``pad_id``: the padding token.
    ``own_generation_config``, ``own_rescale_every``: the model's original settings, restored when it is saved.
    ``shared_length``: sequences of different lengths may share a pass if none has more tokens; None for no limit.
    ``padding``, ``embedding_width``, ``state_width``: see ``ProbeResult``.
    """

    end_ids: frozenset[int]
    pad_id: int
    own_generation_config: Any
    own_rescale_every: int
    shared_length: int | None
    padding: Padding
    embedding_width: int
    state_width: int


def prepare_model(model: Any, tokenizer: Any, *, max_new_tokens: int, temperature: float) -> PreparedModel:
    """Set up ``model`` for PPO, and run short forward passes with it.

    The model is put into evaluation mode, because only without dropout the first probability ratio of a step is 1. Its
    generation settings become plain sampling, because its own may have top-k, top-p or penalties. It no longer rescales
    its weights.

    Raises:
        PolicyError: the tokenizer has no end-of-sequence token, or the model has rescaled its weights already.
    """
    from transformers import GenerationConfig

    model.eval()
    own_config = model.generation_config
    ends = own_config.eos_token_id
    configured_ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    if not configured_ends:
        raise PolicyError("the policy's tokenizer has no end-of-sequence token")
    end_ids = frozenset(int(i) for i in configured_ends)
    pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(end_ids)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(end_ids),
        pad_token_id=pad_id,
    )
    rescale_every = stop_rescaling(model)
    probe_result = probe(model, pad_id, end_ids)
    return PreparedModel(
        end_ids, pad_id, own_config, rescale_every, longest_shared(model.config.to_dict()), *probe_result
    )


def stop_rescaling(model: Any) -> int:
    """Stop a model from dividing its weights for half precision in evaluation mode (RWKV).

    If such weights were trained and saved, they would be divided again after loading.

    Returns:
        The previous value of ``config.rescale_every``, which must be restored when the model is saved; 0 if the model
        does not rescale.

    Raises:
        PolicyError: the model has divided its weights already.
    """
    every = int(getattr(model.config, "rescale_every", 0) or 0)
    if every:
        if any(getattr(module, "layers_are_rescaled", False) for module in model.modules()):
            raise PolicyError("the policy has rescaled its weights in an earlier pass; load it again")
        model.config.rescale_every = 0
    return every


class ProbeResult(NamedTuple):
    """The side that may be padded, and the widths of first and last hidden states."""

    padding: Padding
    embedding_width: int
    state_width: int


@torch.no_grad()
def probe(model: Any, pad_id: int, avoid: frozenset[int]) -> ProbeResult:
    """Run one short sequence alone, padded on the left, and padded on the right.

    The states of recurrent models may depend on padding (RWKV). A side is used only if padding it changes nothing.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    usable = [i for i in range(min(vocabulary, 4096)) if i not in avoid and i != pad_id] or [pad_id]
    sequence = [usable[(7 * n + 3) % len(usable)] for n in range(_PROBE_TOKENS)]
    rows = {"none": (0, 0), "left": (_PROBE_PADDING, 0), "right": (0, _PROBE_PADDING)}
    states: dict[str, Tensor] = {}
    embedding_width = 0
    for name, (left, right) in rows.items():
        ids = torch.tensor([[pad_id] * left + sequence + [pad_id] * right], device=model.device)
        mask = torch.tensor([[0] * left + [1] * len(sequence) + [0] * right], device=model.device)
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=1,
        )
        states[name] = out.hidden_states[-1][0, left : left + len(sequence)].float()
        embedding_width = out.hidden_states[0].shape[-1]
    alone = states["none"]
    noise = 1e-3 if model.dtype == torch.float32 else 0.1
    sides: Mapping[Padding, float] = {
        "left": float((states["left"] - alone).norm() / alone.norm().clamp_min(1e-12)),
        "right": float((states["right"] - alone).norm() / alone.norm().clamp_min(1e-12)),
    }
    # NaN from damaged weights counts as harmless here; the loop reports it
    harmless = [side for side, change in sides.items() if not change > noise]
    return ProbeResult(harmless[0] if harmless else "none", embedding_width, alone.shape[-1])
