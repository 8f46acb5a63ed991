"""Detects NaN and infinite numbers before they reach an update, and saves the batch they occurred in."""

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
    """A number is NaN or infinite. The message names it."""


@dataclass
class StepRecord:
    """The rollouts, scores and tensors of the step in progress. ``tensors`` are (B, T) over response tokens."""

    step: int
    rollouts: list[Rollout] = field(default_factory=list)
    scores: Scores | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, values: Tensor, mask: Tensor) -> Tensor:
        """Store ``values`` under ``name``, and return them with 0 outside ``mask``.

        Raises:
            NonFiniteError: the value of a real token is not finite.
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
    """Raise NonFiniteError if a score or a reward is not finite."""
    for row, item in enumerate(scores.items):
        for column, reward in enumerate(item.rewards):
            if not math.isfinite(reward):
                raise NonFiniteError(f"the reward of response {row} at token {column} is {reward}")
        if not math.isfinite(item.score):
            raise NonFiniteError(f"the score of response {row} is {item.score}")


def check_number(name: str, value: Tensor) -> None:
    """Raise NonFiniteError if ``value``, a scalar, is not finite."""
    if not bool(value.isfinite()):
        raise NonFiniteError(f"the {name} is {float(value)}")


def write_step(folder: Path, record: StepRecord, reason: str) -> Path:
    """Write ``step-N.json`` to ``folder``: the reason and every response with its numbers. Raises OSError.

    NaN and infinity, which JSON does not have, are written as the strings "nan", "inf" and "-inf".
    """
    rows: list[dict[str, Any]] = []
    for n, rollout in enumerate(record.rollouts):
        row: dict[str, Any] = {
            "prompt": rollout.prompt,
            "response": rollout.text,
            "finished": rollout.is_finished,
            "group": rollout.group,
            "prompt_ids": list(rollout.prompt_ids),
            "response_ids": list(rollout.response_ids),
        }
        if record.scores is not None:
            row["score"] = _plain(record.scores.items[n].score)
            row["rewards"] = [_plain(reward) for reward in record.scores.items[n].rewards]
        for name, values in record.tensors.items():
            row[name.replace(" ", "_")] = [_plain(value) for value in values[n, : len(rollout.response_ids)].tolist()]
        rows.append(row)
    path = folder / f"step-{record.step}.json"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"step": record.step, "reason": reason, "responses": rows}
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    return path


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(float(value))
