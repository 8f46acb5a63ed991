"""A PPO run on disk: a resumed run takes the very steps that an uninterrupted one would have taken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from redline.errors import CommandError

if TYPE_CHECKING:
    from redline.ppo.loop import PPOLoop


def save_checkpoint(path: Path, loop: PPOLoop) -> None:
    """Write the loop's state and torch's generators, atomically."""
    state = {
        **loop.state(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path, loop: PPOLoop) -> None:
    """Put a saved run back.

    Raises:
        CommandError: it cannot be read, or is of other settings.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # torch.load raises pickle's, zipfile's and its own types
        raise CommandError(f"{path} cannot be read; remove it to start over: {error}") from error
    if state["identity"] != loop.config.identity():
        mine, theirs = loop.config.identity(), state["identity"]
        names = ", ".join(k for k in mine if mine[k] != theirs.get(k))
        raise CommandError(f"{path} is of a run with other settings ({names}); choose another --out or remove it")
    loop.load_state(state)
    torch.set_rng_state(state["torch_rng"])
    if state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
