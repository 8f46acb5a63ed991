"""Forward passes of the policy over rollouts: padding, and which sequences may share a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from redline.causal_lm.rotary import reset_angles
from redline.ppo.preparation import Padding, PreparedModel
from redline.ppo.protocols import Rollout


class PaddedRollouts(NamedTuple):
    """Rollouts as padded tensors.

    ``ids``, ``mask``: (B, L), the sequences.
    ``targets``: (B, T), response tokens.
    ``columns``: (B, T), index in the sequence of the token before each target.
    """

    ids: Tensor
    mask: Tensor
    targets: Tensor
    columns: Tensor


def pad_rollouts(rollouts: Sequence[Rollout], padding: Padding, pad_id: int, device: torch.device) -> PaddedRollouts:
    """Pad rollouts, one row per rollout.

    With padding on the left, prompts are padded on the left and responses on the right, so that all responses start in
    the same column. Otherwise each row is a prompt, its response, and padding.
    """
    max_prompt = max(len(r.prompt_ids) for r in rollouts)
    max_response = max(len(r.response_ids) for r in rollouts)
    width = (
        max_prompt + max_response
        if padding == "left"
        else max(len(r.prompt_ids) + len(r.response_ids) for r in rollouts)
    )
    ids = torch.full((len(rollouts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    targets = torch.full((len(rollouts), max_response), pad_id, dtype=torch.long)
    columns = torch.zeros_like(targets)
    steps = torch.arange(max_response)
    for n, rollout in enumerate(rollouts):
        start = max_prompt - len(rollout.prompt_ids) if padding == "left" else 0
        sequence_ids = rollout.prompt_ids + rollout.response_ids
        ids[n, start : start + len(sequence_ids)] = torch.tensor(sequence_ids)
        mask[n, start : start + len(sequence_ids)] = 1
        targets[n, : len(rollout.response_ids)] = torch.tensor(rollout.response_ids)
        columns[n] = (start + len(rollout.prompt_ids) - 1 + steps).clamp_max(width - 1)
    return PaddedRollouts(ids.to(device), mask.to(device), targets.to(device), columns.to(device))


class ModelOutputs(NamedTuple):
    """Outputs of one forward pass.

    ``logits``: (B, T, V), before each response token, in the model's dtype.
    ``embeddings``: (B, L, E), first hidden states.
    ``states``: (B, L, H), last hidden states.
    """

    logits: Tensor
    embeddings: Tensor
    states: Tensor


def forward_rollouts(model: Any, layout: PaddedRollouts) -> ModelOutputs:
    """One forward pass. Logits of prompts are not computed if all responses start in the same column."""
    width, max_response = layout.ids.shape[1], layout.columns.shape[1]
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
        logits = logits[:, :max_response]
    else:
        index = (layout.columns - first).unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        logits = logits.gather(1, index)
    return ModelOutputs(logits, out.hidden_states[0], out.hidden_states[-1])


class RolloutForward:
    """Forward passes over rollouts. The results do not depend on which rollouts share a pass.

    Args:
        has_bfloat16: matrix products are computed in bfloat16.
    """

    def __init__(self, prepared: PreparedModel, device: torch.device, *, has_bfloat16: bool) -> None:
        self._prepared = prepared
        self._device = device
        self._has_bfloat16 = has_bfloat16

    def precision(self) -> torch.autocast:
        """The context in which the model computes."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._has_bfloat16)

    def reset_angles(self, model: Any) -> None:
        """Reset rotary embeddings that depend on the length and that longer sequences have changed."""
        if self._prepared.shared_length is not None:
            reset_angles(model.modules())

    def groups(self, totals: Sequence[int], marks: Sequence[int] | None) -> list[list[int]]:
        """Which sequences may share a pass, as lists of indices.

        Args:
            totals: tokens of each sequence. Sequences longer than ``shared_length`` share a pass only with sequences of
                the same length.
            marks: sequences with different marks do not share a pass; None if all may.
        """
        limit = self._prepared.shared_length
        groups: dict[tuple[int, int], list[int]] = {}
        for n, total in enumerate(totals):
            is_long = limit is not None and total > limit
            groups.setdefault((total if is_long else 0, 0 if marks is None else marks[n]), []).append(n)
        return list(groups.values())

    def outputs(
        self, model: Any, rollouts: Sequence[Rollout], read: Callable[[ModelOutputs, PaddedRollouts], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Apply ``read`` to each pass and join its results, (B, T) each, padded and in the order of ``rollouts``."""
        totals = [len(r.prompt_ids) + len(r.response_ids) for r in rollouts]
        groups = self.groups(totals, range(len(rollouts)) if self._prepared.padding == "none" else None)
        longest = max(len(r.response_ids) for r in rollouts)
        joined: list[list[Tensor]] = []
        for group in groups:
            layout = pad_rollouts(
                [rollouts[n] for n in group], self._prepared.padding, self._prepared.pad_id, self._device
            )
            self.reset_angles(model)
            with self.precision():
                states = forward_rollouts(model, layout)
            fields = read(states, layout)
            joined.append([nn.functional.pad(field, (0, longest - field.shape[1])) for field in fields])
        if len(groups) == 1:
            return joined[0]
        order = torch.tensor([n for group in groups for n in group], device=self._device).argsort()
        return [torch.cat(fields)[order] for fields in zip(*joined, strict=True)]
