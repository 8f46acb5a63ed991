"""Sequences of a prompt and a response as one padded batch, and what a model says of the responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from redline.errors import PolicyError
from redline.ppo.protocols import Rollout

# Which side may be padded without a change of any log-probability; "none": each sequence is alone in its pass.
Padding = Literal["left", "right", "none"]
_PROBE_TOKENS, _PROBE_PADDING = 12, 5


class PaddedRollouts(NamedTuple):
    """``ids``, ``mask`` (B, L); ``targets`` (B, T), response tokens; ``columns`` (B, T), of the token before each."""

    ids: Tensor
    mask: Tensor
    targets: Tensor
    columns: Tensor


def pad_rollouts(rollouts: Sequence[Rollout], padding: Padding, pad_id: int, device: torch.device) -> PaddedRollouts:
    """One row a rollout.

    With padding on the left, prompts are padded there and responses on the right: responses stand in the same columns.
    Else each row is a prompt, its response, and padding.
    """
    before = max(len(r.prompt_ids) for r in rollouts)
    after = max(len(r.response_ids) for r in rollouts)
    width = before + after if padding == "left" else max(len(r.prompt_ids) + len(r.response_ids) for r in rollouts)
    ids = torch.full((len(rollouts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    targets = torch.full((len(rollouts), after), pad_id, dtype=torch.long)
    columns = torch.zeros_like(targets)
    steps = torch.arange(after)
    for n, rollout in enumerate(rollouts):
        start = before - len(rollout.prompt_ids) if padding == "left" else 0
        whole = rollout.prompt_ids + rollout.response_ids
        ids[n, start : start + len(whole)] = torch.tensor(whole)
        mask[n, start : start + len(whole)] = 1
        targets[n, : len(rollout.response_ids)] = torch.tensor(rollout.response_ids)
        columns[n] = (start + len(rollout.prompt_ids) - 1 + steps).clamp_max(width - 1)
    return PaddedRollouts(ids.to(device), mask.to(device), targets.to(device), columns.to(device))


class States(NamedTuple):
    """``logits`` (B, T, V) before each response token, in the model's dtype; first and last hidden states (B, L, .)."""

    logits: Tensor
    embeddings: Tensor
    states: Tensor


def run(model: Any, layout: PaddedRollouts) -> States:
    """One pass; no logits are made for prompts where all responses stand in the same columns."""
    width, after = layout.ids.shape[1], layout.columns.shape[1]
    first = int(layout.columns[:, 0].min())
    out = model(
        input_ids=layout.ids,
        attention_mask=layout.mask,
        position_ids=(layout.mask.cumsum(1) - 1).clamp_min(0),
        use_cache=False,
        output_hidden_states=True,
        logits_to_keep=width - first,
    )
    logits = out.logits[:, first - width :]
    if bool((layout.columns[:, 0] == first).all()):
        logits = logits[:, :after]
    else:
        index = (layout.columns - first).unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        logits = logits.gather(1, index)
    return States(logits, out.hidden_states[0], out.hidden_states[-1])


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
    """What a short pass tells: which padding is harmless, and the widths of first and last hidden states."""

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
