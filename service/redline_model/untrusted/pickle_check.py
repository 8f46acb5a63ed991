"""Check weights in PyTorch's own format: a limited process reads their description before torch opens the file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from redline_model.errors import BundleError
from redline_model.untrusted.bounded_json import one_line
from redline_model.untrusted.trial_process import Limits, TrialError, run_trial
from redline_model.untrusted.weight_headers import TensorInfo, read_index, safetensors_tensors

PICKLED = "pytorch_model.bin"
_LIMITS = Limits(cpu_s=5, wall_s=20.0, memory_bytes=2**30)
_TRIAL = Path(__file__).with_name("pickle_trial.py")


def checkpoint_tensors(folder: Path) -> dict[str, TensorInfo] | None:
    """The tensors that transformers would load from a local folder, in either format. Raises BundleError."""
    tensors = safetensors_tensors(folder)
    return pytorch_tensors(folder) if tensors is None else tensors


def pytorch_tensors(folder: Path) -> dict[str, TensorInfo] | None:
    """The tensors of a folder's ``pytorch_model.bin``, or of its parts; None if there is none.

    Raises:
        BundleError: a file is damaged or compressed, describes more than it contains, or contains more than weights.
    """
    index = folder / f"{PICKLED}.index.json"
    if (folder / PICKLED).exists():
        names = [PICKLED]
    elif index.exists():
        names = sorted(set(read_index(index).values()))
    else:
        return None
    tensors: dict[str, TensorInfo] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder} holds no weights: there is no {one_line(name)}")
        status = path.stat()
        tensors |= _tensors_of_file(str(path), status.st_size, status.st_mtime_ns)
    return tensors


@lru_cache(maxsize=32)
def _tensors_of_file(path: str, size: int, changed_at: int) -> dict[str, TensorInfo]:
    """``size`` and ``changed_at`` of the file are part of the cache key, so that a changed file is read again."""
    try:
        report = run_trial(_TRIAL, {"file": path}, _LIMITS)
    except TrialError as error:
        raise BundleError(f"{path} cannot be read: {one_line(error)}") from error
    if "refused" in report:
        raise BundleError(f"{path} cannot be read: {one_line(report['refused'])}")
    return {name: TensorInfo(dtype, tuple(shape)) for name, (dtype, shape) in report["tensors"].items()}
