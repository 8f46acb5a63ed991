"""What is done to a causal language model before PPO trains it, and what a short forward pass finds out about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from redline.causal_lm.rotary import longest_shared
from redline.errors import PolicyError

# Which side may be padded without a change of any log-probability; "none": each sequence is alone in its pass.
Padding = Literal["left", "right", "none"]
_PROBE_TOKENS, _PROBE_PADDING = 12, 5


class PreparedModel(NamedTuple):
    """What ``prepare_model`` found out, and what it replaced.

    Args:
        end_ids: tokens that end a response.
        pad_id: what fills sequences up.
        own_generation_config, own_rescale_every: the model's own settings, to be put back when it is saved.
        shared_length: sequences of at most so many tokens may share a pass whatever their lengths; None: all may.
        padding, embedding_width, state_width: see ``probe``.
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
    """Change ``model`` into one that samples and is trained as PPO needs it, and run a short forward pass.

    It is put into evaluation mode: without dropout the first ratio of a step is exactly 1. Its generation settings
    become plain sampling, for its own file may ask for top-k, top-p or penalties. It no longer rescales its weights.

    Raises:
        PolicyError: the tokenizer has no end-of-sequence token, or the model has rescaled its weights already.
    """
    from transformers import GenerationConfig

    model.eval()
    own_config = model.generation_config
    ends = own_config.eos_token_id
    found = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    if not found:
        raise PolicyError("the policy's tokenizer has no end-of-sequence token")
    end_ids = frozenset(int(i) for i in found)
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
    probed = probe(model, pad_id, end_ids)
    return PreparedModel(end_ids, pad_id, own_config, rescale_every, longest_shared(model.config.to_dict()), *probed)


def stop_rescaling(model: Any) -> int:
    """Keep a model from dividing its own weights for half precision when it is not training (RWKV); 0 if it never does.

    The weights of such a pass are not the model's: learned and saved, they would be divided again when loaded.

    Returns:
        ``config.rescale_every``, which is 0 now, to be put back when the model is saved.

    Raises:
        PolicyError: the model has divided its weights already.
    """
    every = int(getattr(model.config, "rescale_every", 0) or 0)
    if every:
        if any(getattr(module, "layers_are_rescaled", False) for module in model.modules()):
            raise PolicyError("the policy has rescaled its weights in an earlier pass; load it anew")
        model.config.rescale_every = 0
    return every


class Probed(NamedTuple):
    """What a short pass shows: which padding is harmless, and the widths of first and last hidden states."""

    padding: Padding
    embedding_width: int
    state_width: int


@torch.no_grad()
def probe(model: Any, pad_id: int, avoid: frozenset[int]) -> Probed:
    """Run one short sequence alone, padded on the left, and padded on the right.

    Recurrent models read padding (RWKV): a side is used only if it leaves the states as they are.
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
    harmless = [side for side, change in sides.items() if not change > noise]  # damaged weights are found by the loop
    return Probed(harmless[0] if harmless else "none", embedding_width, alone.shape[-1])
