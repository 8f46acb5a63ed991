"""Checkpoints of a PPO run. A resumed run takes the same steps as a run that was not interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from redline.errors import CheckpointError
from redline.files.atomic import atomic_file


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` and the states of torch's random generators, atomically. Raises OSError."""
    complete_state = {
        **state,
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, is_only_writer=True) as file:
        torch.save(complete_state, file)


def restore_checkpoint(path: Path, identity: dict[str, object]) -> dict[str, Any]:
    """Restore torch's random generators from ``path``, and return the state that was saved there.

    Raises:
        CheckpointError: the file cannot be read, or its ``identity`` differs.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # torch.load raises pickle's, zipfile's and its own types
        raise CheckpointError(f"{path} cannot be read: {error}. Remove it to start over") from error
    saved = state["identity"]
    if saved != identity:
        names = ", ".join(sorted(k for k in {*identity, *saved} if identity.get(k) != saved.get(k)))
        raise CheckpointError(
            f"{path} was written by a run with other settings ({names}); choose another --out or remove it"
        )
    torch.set_rng_state(state["torch_rng"])
    if state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return state


def copied_to_cpu(state: Any) -> Any:
    """A copy of ``state`` with all tensors in main memory. Dictionaries, lists and tuples are copied, too."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied_to_cpu(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(copied_to_cpu(value) for value in state)
    return state
