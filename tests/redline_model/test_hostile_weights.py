"""Weights in PyTorch's own format that claim more than they contain, or contain more than weights, are refused."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import check_policy, load_model
from redline_model.errors import BundleError
from redline_model.untrusted.pickle_check import PICKLED, pytorch_tensors
from tests.conftest import build_causal
from tests.damage import WEIGHTS, config, file, json_file
from tests.redline_model.test_hostile_bundles import LIMIT_MIB, LIMIT_S, peak_mib
from tests.terminal import run_on_terminal

CPU = LoadOptions(device="cpu")


@pytest.fixture
def base(bundle: Bundle, tmp_path: Path) -> Path:
    """A model's folder without weights."""
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    (copy / WEIGHTS).unlink()
    return copy


def save_to_bytes(value: Any, **options: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data, **options)
    return data.getvalue()


def rewrite_archive(change: Callable[[str, bytes], bytes | None], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The weights of the model as an archive whose parts were changed, None to leave one out."""
    data = io.BytesIO()
    good = io.BytesIO(save_to_bytes(build_causal(400).state_dict()))
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(data, "w", compression) as new:
        for name in old.namelist():
            part = change(name, old.read(name))
            if part is not None:
                new.writestr(name, part)
    return data.getvalue()


def with_table(value: Any) -> bytes:
    """The weights of the model with another pickle."""
    return rewrite_archive(lambda name, part: value if name.endswith("data.pkl") else part)


class _Raw(pickle._Pickler):
    """Writes tensors of any description."""

    def persistent_id(self, value: Any) -> Any:
        return value.fields if isinstance(value, _Storage) else None


class _Storage:
    def __init__(self, count: int, key: str = "0") -> None:
        self.fields = ("storage", torch.FloatStorage, key, "cpu", count)


class _Tensor:
    def __init__(self, storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.fields = (storage, offset, shape, strides, False, {})

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.fields


def described(count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], stored: int = 4) -> bytes:
    """An archive of one storage with ``stored`` numbers, said to hold ``count``, and a tensor of this description."""
    data = io.BytesIO()
    _Raw(data, 2).dump({"lm_head.weight": _Tensor(_Storage(count), offset, shape, strides)})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", data.getvalue())
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", b"\0" * 4 * stored)
    return out.getvalue()


def legacy(count: int, stored: int) -> bytes:
    """The older layout: one storage said to hold ``count`` numbers, with ``stored`` of them."""
    data = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, data, 2)
    _Raw(data, 2).dump({"lm_head.weight": _Tensor(_Storage(count), 0, (count,), (1,))})
    pickle.dump(["0"], data, 2)
    return data.getvalue() + struct.pack("<q", count) + b"\0" * 4 * stored


BILLION = 10**9
HOSTILE_WEIGHTS: dict[str, Callable[[], bytes]] = {
    "zip bomb": lambda: rewrite_archive(
        lambda name, part: b"\0" * 200_000_000 if name.endswith("data/0") else part, compression=zipfile.ZIP_DEFLATED
    ),
    "archive without a table": lambda: rewrite_archive(lambda name, part: None if name.endswith("data.pkl") else part),
    "archive without a storage": lambda: rewrite_archive(lambda name, part: None if name.endswith("data/3") else part),
    "storage that is cut off": lambda: rewrite_archive(
        lambda name, part: part[:-4] if name.endswith("data/3") else part
    ),
    "archive that is cut off": lambda: save_to_bytes(build_causal(400).state_dict())[:-5000],
    "storage of 10 GB": lambda: described(10 * BILLION // 4, 0, (4,), (1,)),
    "tensor of 10 GB": lambda: described(4, 0, (10 * BILLION // 4,), (1,)),
    "tensor of 10 GB made of one number": lambda: described(4, 0, (10 * BILLION // 4,), (0,)),
    "tensor whose size overflows": lambda: described(4, 0, (2**62, 2**62, 0), (1, 1, 1)),
    "tensor beyond the end": lambda: described(4, 2, (4,), (1,)),
    "tensor before the beginning": lambda: described(4, -2, (2,), (1,)),
    "tensor with a negative size": lambda: described(4, 0, (-2, -2), (1, 1)),
    "older layout of 10 GB": lambda: legacy(10 * BILLION // 4, 4),
    "older layout that is cut off": lambda: legacy(4, 3),
    "text that claims 10 GB": lambda: with_table(b"\x80\x04\x8d" + struct.pack("<Q", 10 * BILLION) + b"a."),
    "memory that claims 16 GB": lambda: with_table(b"\x80\x02}r\xff\xff\xff\x7f."),
    "bytes of 10 GB made on the spot": lambda: with_table(
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85R."
    ),
    "lists nested a million deep": lambda: with_table(b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"."),
    "call of a function": lambda: save_to_bytes({"a": Path}),
    "table that is a list": lambda: save_to_bytes([torch.zeros(2)]),
    "pickle of Python alone": lambda: pickle.dumps({"a": 1}),
    "file of zeros": lambda: b"\0" * 10_000,
    "empty file": lambda: b"",
}


@pytest.mark.parametrize("what", HOSTILE_WEIGHTS)
def test_hostile_weights_of_a_base_are_refused_in_time_and_memory(base: Path, what: str) -> None:
    (base / PICKLED).write_bytes(HOSTILE_WEIGHTS[what]())
    started, before = time.monotonic(), peak_mib()
    with pytest.raises(BundleError, match=PICKLED) as refusal:
        load_model(base, "seq2seq", CPU)
    assert time.monotonic() - started < LIMIT_S
    assert peak_mib() - before < LIMIT_MIB
    assert str(refusal.value).isprintable()
    with pytest.raises(BundleError, match=PICKLED):
        check_policy(base)


@pytest.mark.faults
def test_training_from_hostile_weights_ends_with_one_line(base: Path, tmp_path: Path) -> None:
    (base / PICKLED).write_bytes(HOSTILE_WEIGHTS["storage of 10 GB"]())
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "chosen": "a", "rejected": "b"}\n'
    )
    arguments = ("--base", str(base), "--pairs", str(pairs), "--out", str(tmp_path / "out"))
    status, output, _, _, peak = run_on_terminal("train", *arguments)
    assert status == 1, output
    assert output.splitlines()[-1].startswith("redline: ")
    assert "Traceback" not in output
    assert peak < 1200


def test_a_configuration_of_a_larger_model_is_refused(base: Path) -> None:
    (base / PICKLED).write_bytes(save_to_bytes(build_causal(400).state_dict()))
    config(intermediate_size=10**7)(base)
    with pytest.raises(BundleError, match="describes a model of"):
        load_model(base, "seq2seq", CPU)


def test_weight_files_outside_of_the_folder_are_refused(base: Path) -> None:
    file(f"{PICKLED}.index.json", '{"weight_map": {"lm_head.weight": "../other.bin"}}')(base)
    with pytest.raises(BundleError, match=r"not a file of this folder"):
        load_model(base, "seq2seq", CPU)


@pytest.mark.parametrize("name", ["adapter_model.bin", "other/weights.safetensors", "../weights.safetensors"])
def test_weights_under_another_file_name_are_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    json_file("config.json", transformers_weights=name)(copy)
    with pytest.raises(BundleError, match="transformers_weights"):
        Bundle.load(copy)


# Valid cases that must not be refused


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older layout"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_valid_weights_are_described_and_loaded(base: Path, dtype: torch.dtype, is_zip: bool) -> None:
    model = build_causal(400).to(dtype)
    torch.save(model.state_dict(), base / PICKLED, _use_new_zipfile_serialization=is_zip)
    stored = pytorch_tensors(base)
    assert stored is not None
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        n: tuple(t.shape) for n, t in model.state_dict().items()
    }
    assert {tensor.dtype for tensor in stored.values()} == {"F32" if dtype == torch.float32 else "BF16"}
    loaded = load_model(base, "seq2seq", CPU)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.float())
    check_policy(base)


def test_tied_weights_views_and_parameters_are_described(base: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "a": shared,
        "b": shared,
        "t": shared.T,
        "row": shared[1],
        "p": torch.nn.Parameter(shared),
        "n": torch.zeros(0, 3),
    }
    torch.save({**tensors, "step": 3}, base / PICKLED)
    stored = pytorch_tensors(base)
    assert stored is not None
    assert {name: tensor.shape for name, tensor in stored.items()} == {n: tuple(t.shape) for n, t in tensors.items()}


def test_weights_in_several_files_are_read(base: Path) -> None:
    state = build_causal(400).state_dict()
    half = {name: f"part-{n % 2}.bin" for n, name in enumerate(state)}
    for part in set(half.values()):
        torch.save({name: state[name] for name in state if half[name] == part}, base / part)
    (base / f"{PICKLED}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": half}))
    assert torch.equal(load_model(base, "seq2seq", CPU).lm_head.weight, state["lm_head.weight"])
