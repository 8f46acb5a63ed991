"""Checkpoints of a training run. A resumed run gives the same result as one that was not interrupted."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from redline.files.atomic import atomic_file
from redline_model.errors import RedlineModelError
from redline_trainer.adapters import learned_state, load_learned_state
from redline_trainer.config import TrainConfig
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.base import Objective


class ResumeError(RedlineModelError):
    """A checkpoint belongs to another run, or it cannot be read."""


def run_identity(config: TrainConfig, pairs: Sequence[EncodedPair]) -> str:
    """A digest of the settings and of all training token ids. A checkpoint is resumed only if it is equal."""
    digest = hashlib.sha256(json.dumps(config.identity(), sort_keys=True).encode())
    for pair in pairs:
        digest.update(repr((pair.chosen.prefix_ids, pair.chosen.target_ids, pair.rejected.target_ids)).encode())
    return digest.hexdigest()


def save_checkpoint(
    path: Path, identity: str, step: int, model: Any, optimizer: torch.optim.Optimizer, objective: Objective[Any]
) -> None:
    """Write everything that the next step depends on, atomically. Raises OSError."""
    state = {
        "identity": identity,
        "step": step,
        "model": learned_state(model),
        "optimizer": optimizer.state_dict(),
        "objective": objective.state(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python_rng": random.getstate(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, is_only_writer=True) as file:
        torch.save(state, file)


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # torch.load raises pickle's, zipfile's and its own types
        raise ResumeError(f"{path} cannot be read: {error}. Remove it to start over") from error
    return state


def saved_step(path: Path) -> int:
    """Number of steps done at the checkpoint, 0 if there is none. Raises ResumeError."""
    return int(_read(path)["step"]) if path.exists() else 0


def resume(path: Path, identity: str, model: Any, optimizer: torch.optim.Optimizer, objective: Objective[Any]) -> int:
    """Restore a run, and return its number of steps done; 0 if there is no checkpoint.

    Raises:
        ResumeError: the checkpoint was written with other settings or other data.
    """
    if not path.exists():
        return 0
    state = _read(path)
    if state["identity"] != identity:
        raise ResumeError(f"{path} was written by a run with other settings or data; remove it to start over")
    load_learned_state(model, state["model"])
    optimizer.load_state_dict(state["optimizer"])
    objective.load_state(state["objective"])
    torch.set_rng_state(state["torch_rng"])
    if state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    random.setstate(state["python_rng"])
    return int(state["step"])
