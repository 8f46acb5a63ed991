"""Check the header of a safetensors file before any tensor is read.

Layout: 8 bytes with the header's length as a little-endian integer; the header, a JSON object with dtype, shape and
offsets of each tensor; the tensors, one after the other without gaps.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from redline_model.errors import BundleError
from redline_model.untrusted.bounded_json import one_line, parse_object, read_bytes

# The format allows 100 MB; a tensor takes about 110 bytes of it, so this is enough for 70,000 in one file.
MAX_HEADER_BYTES = 8 * 2**20
_MAX_INDEX_BYTES = 16 * 2**20
INDEX = "model.safetensors.index.json"
_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class TensorInfo(NamedTuple):
    """Data type and shape of one tensor, from a header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file by name. Raises BundleError if the file is not an intact safetensors file."""
    try:
        if not path.is_file():
            raise BundleError(f"{path} is not a regular file")
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
            if not 2 <= length <= size - 8:
                raise _damaged(
                    path, f"its header would take {length} of {size} bytes" if size >= 8 else "it is cut off"
                )
            if length > MAX_HEADER_BYTES:
                raise _damaged(path, f"its header has {length} bytes; it may have {MAX_HEADER_BYTES}")
            data = file.read(length)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {one_line(error)}") from error
    entries = parse_object(data, f"the header of {path}", max_depth=4)
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int]] = []
    for name, fields in entries.items():
        if name != "__metadata__":
            tensors[name], span = _tensor(path, name, fields)
            spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _damaged(path, f"its tensors {'overlap' if start < end else 'leave a gap'}")
        end = stop
    if end != size - 8 - length:
        raise _damaged(path, f"its tensors take {end} bytes and it holds {size - 8 - length}")
    return tensors


def safetensors_tensors(folder: Path) -> dict[str, TensorInfo] | None:
    """The tensors that transformers would load from a local folder; None if there are no safetensors."""
    single_file, index = folder / "model.safetensors", folder / INDEX
    if single_file.exists():
        return read_header(single_file)
    if not index.exists():
        return None
    mapping = read_index(index)
    stored: dict[str, TensorInfo] = {}
    for name in sorted(set(mapping.values())):
        stored |= read_header(folder / name)
    return stored


def read_index(path: Path) -> dict[str, str]:
    """The file of each tensor, by the tensor's name. Raises BundleError."""
    raw = parse_object(read_bytes(path, _MAX_INDEX_BYTES), str(path)).get("weight_map")
    if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw.values()):
        raise BundleError(f"{path} does not say which file holds which weights")
    for name in set(raw.values()):
        if Path(name).name != name or not name.isprintable():
            raise BundleError(f"{path} names {one_line(repr(name))}, which is not a file of this folder")
    return raw


def _tensor(path: Path, name: str, fields: Any) -> tuple[TensorInfo, tuple[int, int]]:
    entries = fields if isinstance(fields, dict) else {}
    dtype, shape, offsets = entries.get("dtype"), _sizes(entries.get("shape")), _sizes(entries.get("data_offsets"))
    bits = _BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None or shape is None or offsets is None or len(offsets) != 2:
        raise _damaged(path, f"its header describes {one_line(repr(name))} wrongly")
    info = TensorInfo(str(dtype), shape)
    start, end = offsets
    if end < start or info.elements * bits != 8 * (end - start):
        raise _damaged(path, f"shape and place of {one_line(repr(name))} do not fit each other")
    return info, (start, end)


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A short list of non-negative integers, None if it is not one."""
    if not isinstance(value, list) or len(value) > 32:
        return None
    return tuple(value) if all(type(number) is int and 0 <= number < 2**63 for number in value) else None


def _damaged(path: Path, reason: str) -> BundleError:
    return BundleError(f"{path} is not an intact safetensors file: {reason}")
