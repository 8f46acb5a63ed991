"""A reward server as RL frameworks ship it: one blocking handler, left padding, all logits, one batch per request.

It computes the same as Redline (the ``paper`` token rewards of a sequence-to-sequence reward model) with the same
weights and the same sequences; only the serving is that of a reference script.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel

from redline_model.bundle.bundle import Bundle
from redline_model.encoding.items import EncodedItem, Item
from redline_model.errors import RedlineModelError


class Query(BaseModel):
    """One request."""

    items: list[dict[str, str]]


def sequence_of(item: EncodedItem) -> list[int]:
    """``[x, y, instruction, y]``."""
    return [*item.prefix_ids, *item.response_ids, *item.instruction_ids, *item.target_ids]


def paper_rewards(logits: torch.Tensor, targets: list[int]) -> dict[str, Any]:
    """``paper`` token rewards of one item from its logits ``(T, V)``, and the gaps between its two best logits."""
    ids = torch.tensor(targets, device=logits.device)
    top = logits.float().log_softmax(-1).topk(2, dim=-1)
    agrees = top.indices[:, 0] == ids
    has_diverged = (~agrees).cumsum(0) > 0
    rewards = torch.where(agrees, torch.where(has_diverged, 0.0, 1.0), -1.0)
    gap = top.values[:, 0] - top.values[:, 1]
    return {"rewards": rewards.tolist(), "gap": float(gap.min()), "gaps": gap.tolist()}


@torch.no_grad()
def left_padded(model: Any, encoded: list[EncodedItem]) -> list[dict[str, Any]]:
    """Token rewards of ``encoded``, computed in one left-padded batch with all logits."""
    sequences = [sequence_of(item) for item in encoded]
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence)
        mask[row, longest - len(sequence) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return [
        paper_rewards(logits[row, -len(item.target_ids) - 1 : -1], item.target_ids) for row, item in enumerate(encoded)
    ]


def create_app() -> FastAPI:
    """The server, for the bundle in the environment variable BENCH_BUNDLE."""
    bundle = Bundle.load(os.environ["BENCH_BUNDLE"])
    model, encoder = bundle.scorer.model, bundle.scorer.encoder
    model.set_attn_implementation("sdpa")
    app = FastAPI()

    @app.post("/get_reward")
    async def get_reward(query: Query) -> dict[str, Any]:
        try:
            encoded = [encoder.encode(Item(item["prompt"], item["response"])) for item in query.items]
        except RedlineModelError as error:
            return {"error": str(error)}
        return {"rewards": [row["rewards"] for row in left_padded(model, encoded)]}

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app
