"""Weights in PyTorch's own format: what a file describes, read in a limited process before torch opens it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from redline_model.errors import BundleError
from redline_model.untrusted.bounded_json import one_line
from redline_model.untrusted.trial_process import Limits, TrialError, run_trial
from redline_model.untrusted.weight_headers import TensorInfo, held_tensors, read_index

PICKLED = "pytorch_model.bin"
_LIMITS = Limits(cpu_s=5, wall_s=20.0, memory_bytes=2**30)
_TRIAL = Path(__file__).with_name("pickle_trial.py")


def checkpoint_tensors(folder: Path) -> dict[str, TensorInfo] | None:
    """The tensors that transformers would load from a local folder, in either format. Raises BundleError."""
    held = held_tensors(folder)
    return pickled_tensors(folder) if held is None else held


def pickled_tensors(folder: Path) -> dict[str, TensorInfo] | None:
    """The tensors of a folder's ``pytorch_model.bin``, or of its parts; None where there is none.

    Raises:
        BundleError: a file is damaged, is compressed, claims more than it holds, or holds more than weights.
    """
    index = folder / f"{PICKLED}.index.json"
    if (folder / PICKLED).exists():
        names = [PICKLED]
    elif index.exists():
        names = sorted(set(read_index(index).values()))
    else:
        return None
    held: dict[str, TensorInfo] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder} holds no weights: there is no {one_line(name)}")
        facts = path.stat()
        held |= _described(str(path), facts.st_size, facts.st_mtime_ns)
    return held


@lru_cache(maxsize=32)
def _described(path: str, size: int, changed_at: int) -> dict[str, TensorInfo]:
    """``size``, ``changed_at``: of the file, so that one that was written again is read again."""
    try:
        told = run_trial(_TRIAL, {"file": path}, _LIMITS)
    except TrialError as error:
        raise BundleError(f"{path} cannot be read: {one_line(error)}") from error
    if "refused" in told:
        raise BundleError(f"{path} cannot be read: {one_line(told['refused'])}")
    return {name: TensorInfo(dtype, tuple(shape)) for name, (dtype, shape) in told["tensors"].items()}
