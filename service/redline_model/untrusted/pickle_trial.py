"""Trial script: read the tensors that a PyTorch weights file describes, in a limited process (``trial_process``).

Nothing that the file names is imported or run: its pickle is read with substitutes for the few names that weights need.
Imports only the standard library, and not torch.

Layouts: since PyTorch 1.6 a zip archive without compression, with the pickle in ``NAME/data.pkl`` and the numbers of
storage K in ``NAME/data/K``. Before that: three pickles (a magic number, a version, system information), the pickle of
the weights, the pickle of the storages' keys, and for each key 8 bytes with the count of its numbers and then these.
"""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections import OrderedDict
from typing import Any, BinaryIO, NamedTuple

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_MAX_PICKLE_BYTES = 64 * 2**20
_MAX_ENTRIES = 100_000
_MAX_SHARED = 8  # how many times the storages' numbers all tensors may have together: tied weights share a storage
# class name of a storage -> (the dtype's name in safetensors, bytes per number)
_STORAGE_TYPES = {
    "FloatStorage": ("F32", 4),
    "DoubleStorage": ("F64", 8),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
    "ComplexFloatStorage": ("C64", 8),
}


class _Storage(NamedTuple):
    key: str
    dtype: str
    width: int
    numbers: int


class _Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or not all(_is_count(n) for n in (offset, *shape, *strides)):
        raise ValueError("it describes a tensor wrongly")
    if len(shape) != len(strides) or len(shape) > 32 or math.prod(max(1, size) for size in shape) >= 2**63:
        raise ValueError("it describes a tensor wrongly")
    elements = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if elements and (elements > storage.numbers or last >= storage.numbers):
        raise ValueError(f"it describes a tensor of {elements} numbers in a storage of {storage.numbers}")
    return _Tensor(storage.dtype, tuple(shape))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


class _Reader(pickle.Unpickler):
    """Unpickles a table of tensors with substitutes for the names that it needs; imports nothing."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        allowed: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_tensor"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
            ("torch.nn.parameter", "Parameter"): lambda tensor, *rest: tensor,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
        }
        if (module, name) not in allowed:
            raise ValueError(f"it needs {module[:60]}.{name[:60]}, which a table of weights does not")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], tuple):
            raise ValueError("it describes a storage wrongly")
        (dtype, width), key, count = pid[1], pid[2], pid[4]
        if not isinstance(key, str) or not _is_count(count) or not isinstance(width, int):
            raise ValueError("it describes a storage wrongly")
        storage = _Storage(key, dtype, width, count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"it describes storage {key[:40]} twice")
        return storage


def trial(task: dict[str, Any]) -> dict[str, Any]:
    """``{"tensors": {name: [dtype, shape]}}`` of ``task["file"]``, or ``{"refused": reason}``."""
    try:
        with open(task["file"], "rb") as file:  # noqa: PTH123
            size = os.fstat(file.fileno()).st_size
            loaded, storages = _read_zip(file, size) if zipfile.is_zipfile(file) else _read_legacy(file, size)
    except (ValueError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as error:
        return {"refused": str(error)}
    if not isinstance(loaded, dict):
        return {"refused": "it holds no table of weights"}
    tensors = {name: tensor for name, tensor in loaded.items() if isinstance(name, str) and isinstance(tensor, _Tensor)}
    described, contained = (
        sum(math.prod(tensor.shape) for tensor in tensors.values()),
        sum(storage.numbers for storage in storages),
    )
    if described > _MAX_SHARED * contained:
        return {"refused": f"it describes {described} numbers and holds {contained}"}
    return {"tensors": {name: [tensor.dtype, list(tensor.shape)] for name, tensor in tensors.items()}}


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, list[_Storage]]:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        sizes = {entry.filename: entry.file_size for entry in entries}
        if not 0 < len(entries) <= _MAX_ENTRIES or len(sizes) != len(entries):
            raise ValueError(f"it holds {len(entries)} parts, {len(sizes)} of them with a name of their own")
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries
        ):
            raise ValueError("its parts are compressed; PyTorch stores them as they are")
        if sum(sizes.values()) > size:
            raise ValueError(f"its parts would take {sum(sizes.values())} bytes and it has {size}")
        name = entries[0].filename.partition("/")[0]
        if sizes.get(f"{name}/data.pkl", _MAX_PICKLE_BYTES + 1) > _MAX_PICKLE_BYTES:
            raise ValueError("it holds no table of weights, or one that is too large")
        with archive.open(f"{name}/data.pkl") as table:
            reader = _Reader(table)
            loaded = reader.load()
    for storage in reader.storages.values():
        contained = sizes.get(f"{name}/data/{storage.key}")
        if contained != storage.numbers * storage.width:
            raise ValueError(
                f"storage {storage.key[:40]} should have {storage.numbers * storage.width} bytes, not {contained}"
            )
    return loaded, list(reader.storages.values())


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, list[_Storage]]:
    file.seek(0)
    preamble = [_Reader(file).load() for _ in range(3)]
    if preamble[:2] != [_MAGIC, _VERSION]:
        raise ValueError("it is not a file of PyTorch")
    reader = _Reader(file)
    loaded = reader.load()
    keys = _Reader(file).load()
    storages = reader.storages
    if not isinstance(keys, list) or len(keys) != len(storages) or set(keys) != set(storages):
        raise ValueError("its table does not fit its storages")
    needed = file.tell() + sum(8 + storage.numbers * storage.width for storage in storages.values())
    if needed != size:
        raise ValueError(f"its storages would take it to {needed} bytes and it has {size}")
    return loaded, list(storages.values())
