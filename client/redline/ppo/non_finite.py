"""Numbers that are not finite: found before an update is made of them, and written down."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redline.files.atomic import write_text
from redline.ppo.protocols import Rollout, Scores


class NonFiniteError(ArithmeticError):
    """A number is NaN or infinite; the message says which."""


@dataclass
class StepBatch:
    """What one step has computed so far; ``tensors`` are (B, T) over response tokens."""

    step: int
    rollouts: list[Rollout] = field(default_factory=list)
    scores: Scores | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def record(self, name: str, values: Tensor, mask: Tensor) -> Tensor:
        """Keep ``values`` and return them with 0 outside ``mask``.

        Raises:
            NonFiniteError: a real token's is not finite.
        """
        real = torch.where(mask, values, 0.0)
        self.tensors[name] = real.detach()
        is_bad = ~real.isfinite()
        if bool(is_bad.any()):
            row, column = is_bad.nonzero()[0].tolist()
            raise NonFiniteError(
                f"the {name} of response {row} at token {column} is {float(real[row, column])} "
                f"({int(is_bad.sum())} of {int(mask.sum())} tokens)"
            )
        return real


def check_scores(scores: Scores) -> None:
    """Raises NonFiniteError where a score or a reward is not finite."""
    for row, item in enumerate(scores.items):
        for column, reward in enumerate(item.rewards):
            if not math.isfinite(reward):
                raise NonFiniteError(f"the reward of response {row} at token {column} is {reward}")
        if not math.isfinite(item.score):
            raise NonFiniteError(f"the score of response {row} is {item.score}")


def check_number(name: str, value: Tensor) -> None:
    """Raises NonFiniteError where a single number is not finite."""
    if not bool(value.isfinite()):
        raise NonFiniteError(f"the {name} is {float(value)}")


def write_batch(folder: Path, batch: StepBatch, reason: str) -> Path:
    """``step-N.json`` in ``folder``: the reason and every response with its numbers. Raises OSError.

    Numbers that JSON does not know are the strings "nan", "inf" and "-inf".
    """
    rows: list[dict[str, Any]] = []
    for n, rollout in enumerate(batch.rollouts):
        row: dict[str, Any] = {
            "prompt": rollout.prompt,
            "response": rollout.text,
            "finished": rollout.is_finished,
            "group": rollout.group,
            "prompt_ids": list(rollout.prompt_ids),
            "response_ids": list(rollout.response_ids),
        }
        if batch.scores is not None:
            row["score"] = _plain(batch.scores.items[n].score)
            row["rewards"] = [_plain(reward) for reward in batch.scores.items[n].rewards]
        for name, values in batch.tensors.items():
            row[name.replace(" ", "_")] = [_plain(value) for value in values[n, : len(rollout.response_ids)].tolist()]
        rows.append(row)
    path = folder / f"step-{batch.step}.json"
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"step": batch.step, "reason": reason, "responses": rows}
    write_text(path, json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    return path


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(float(value))
