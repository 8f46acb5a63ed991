"""A hostile bundle is refused with one line, within a limit of time and memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from redline_model.bundle.bundle import MAX_DEPTH, Bundle, save_bundle
from redline_model.bundle.hub import locate_bundle
from redline_model.bundle.loading import load_config, load_model
from redline_model.bundle.manifest import Manifest
from redline_model.errors import BundleError, RedlineModelError, UnsupportedError
from redline_model.options import Extraction, Template
from redline_model.untrusted import template_check
from redline_model.untrusted.model_folder import check_weights
from redline_model.untrusted.template_check import check_chat_template
from redline_model.untrusted.weight_headers import read_header
from tests.conftest import CHAT_TEMPLATE, build_causal, build_tokenizer
from tests.damage import WEIGHTS, Damage, edit_json, json_file, template, update_digests
from tests.families import CAUSAL, build_family
from tests.hostile_bundles import HOSTILE, LONG_LOOP, SLOW_BUNDLES
from tests.terminal import run_on_terminal

LIMIT_S = 10
LIMIT_MIB = 300


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


def assert_refused_within_limits(folder: Path) -> Exception:
    """Check that the bundle in ``folder`` is refused with one line within the limits; returns the error."""
    started, before = time.monotonic(), peak_mib()
    with pytest.raises((BundleError, UnsupportedError)) as refusal:
        Bundle.load(folder)
    assert time.monotonic() - started < LIMIT_S
    assert peak_mib() - before < LIMIT_MIB
    message = str(refusal.value)
    assert message.isprintable()
    assert len(message.replace(str(folder), "")) < 500
    return refusal.value


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage, id=what, marks=[pytest.mark.faults] if what in SLOW_BUNDLES else [])
        for what, damage in HOSTILE.items()
    ],
)
def test_a_hostile_bundle_is_refused_in_time_and_memory(copy: Path, damage: Damage) -> None:
    damage(copy)
    assert_refused_within_limits(copy)


def test_a_hostile_bundle_is_refused_off_the_main_thread(copy: Path) -> None:
    template(LONG_LOOP % 8)(copy)
    refusals: list[Exception] = []

    def load() -> None:
        try:
            Bundle.load(copy)
        except RedlineModelError as error:
            refusals.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join(LIMIT_S)
    assert "chat template" in str(refusals)


def test_the_nesting_of_bundles_is_limited(copy: Path, bundle: Bundle) -> None:
    raw = json.loads((copy / "redline.json").read_text()) | {"kind": "ensemble", "ensemble": {"members": 2}}
    member_folder = copy
    for _ in range(MAX_DEPTH + 1):
        member_folder = member_folder / "members/0"
        member_folder.mkdir(parents=True)
        (member_folder / "redline.json").write_text(json.dumps(raw))
    shutil.copytree(bundle.folder, member_folder / "members/0")
    edit_json(copy / "redline.json", kind="ensemble", ensemble={"members": 2})
    update_digests(copy)
    with pytest.raises(BundleError, match=f"more than {MAX_DEPTH} others"):
        Bundle.load(copy)


# Valid cases that must not be refused


def test_links_within_the_hub_s_cache_are_followed(bundle: Bundle, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--someone--rm/snapshots/0123", tmp_path / "models--someone--rm/blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(bundle.folder.iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert Bundle.load(locate_bundle(snapshot)).digest == bundle.digest


def test_weights_in_several_files_are_read(bundle: Bundle, tmp_path: Path) -> None:
    class InParts:
        def save_pretrained(self, folder: Path) -> None:
            bundle.scorer.model.save_pretrained(folder, max_shard_size="200KB")

    manifest = bundle.manifest.model_copy(update={"files": {}})
    save_bundle(tmp_path / "out", manifest, InParts(), bundle.scorer.encoder.tokenizer)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    Bundle.load(tmp_path / "out")
    json_file("config.json", intermediate_size=10**6)(tmp_path / "out")
    with pytest.raises(BundleError, match="describes a model of"):
        Bundle.load(tmp_path / "out")


@pytest.mark.parametrize("name", [*CAUSAL, "t5", "bart"])
def test_every_model_family_passes_the_check_of_its_weights(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    build_family(name).save_pretrained(tmp_path)
    described = load_config(tmp_path)
    check_weights(tmp_path, described, AutoModelForSeq2SeqLM if described.is_encoder_decoder else AutoModelForCausalLM)


def test_weights_in_pytorch_s_format_are_allowed_for_a_base_but_not_for_a_bundle(copy: Path, tmp_path: Path) -> None:
    from redline_model.bundle.load_options import LoadOptions

    model = build_causal(400)
    (copy / WEIGHTS).unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    loaded = load_model(copy, "seq2seq", LoadOptions(device="cpu"))
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    with pytest.raises(BundleError, match="safetensors"):
        load_model(copy, "seq2seq", LoadOptions(device="cpu"), must_be_complete=True)


class _Unpickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(_Unpickled.trace),)

    trace = Path()


def test_weights_of_a_base_cannot_run_code(copy: Path, tmp_path: Path) -> None:
    from redline_model.bundle.load_options import LoadOptions

    _Unpickled.trace = tmp_path / "code was run"
    (copy / WEIGHTS).unlink()
    torch.save({"lm_head.weight": _Unpickled()}, copy / "pytorch_model.bin")
    with pytest.raises(BundleError):
        load_model(copy, "seq2seq", LoadOptions(device="cpu"))
    assert not _Unpickled.trace.exists()


def test_a_template_that_raises_an_error_is_not_refused(copy: Path) -> None:
    template("{{ raise_exception('no conversation is good enough') }}")(copy)
    Bundle.load(copy)


@pytest.mark.parametrize(
    "text",
    [
        CHAT_TEMPLATE,
        "{{ bos_token }}{% generation %}{{ messages[0].content | tojson }}{% endgeneration %}",
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m.content * 2 }}{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}",
        "{% if x",
    ],
)
def test_ordinary_templates_pass_the_trial(text: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = text
    check_chat_template(tokenizer, "here")


def test_a_template_is_tried_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    original = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (calls.append(a), original(*a, **k))[1])
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE + "{# tried once #}"
    for _ in range(3):
        check_chat_template(tokenizer, "here", {})
    assert len(calls) == 1


def test_the_test_conversations_have_many_lengths_and_roles() -> None:
    shapes = [
        [message["role"] for message in conversation["messages"]] for conversation in template_check.conversations()
    ]
    assert shapes[0] == ["user", "assistant", "user"]
    assert {1, 2, 9, 10, 20, 33, 65, 101, 256} <= set(map(len, shapes))
    assert ["system", "user"] in shapes
    assert ["user", "assistant", "tool"] in shapes
    assert {bool(conversation["tools"]) for conversation in template_check.conversations()} == {True, False}


def test_a_header_gives_dtypes_and_shapes(bundle: Bundle) -> None:
    stored = read_header(bundle.folder / WEIGHTS)
    expected = bundle.scorer.model.state_dict()
    assert {name: tensor.shape for name, tensor in stored.items()} == {n: tuple(t.shape) for n, t in expected.items()}
    assert {tensor.dtype for tensor in stored.values()} == {"F32"}


SERVED = ["manifest nested 100,000 deep", "10**9 layers", "template with a loop in a loop", "config of 500 MB"]


@pytest.mark.parametrize("what", [SERVED[0], *(pytest.param(what, marks=pytest.mark.faults) for what in SERVED[1:])])
def test_serving_a_hostile_bundle_ends_with_one_line(copy: Path, what: str) -> None:
    HOSTILE[what](copy)
    status, output, _, took, peak = run_on_terminal("serve", str(copy), "--port", "0")
    assert status == 1, output
    assert output.count("\n") == 1
    assert output.startswith("redline: ")
    assert took < 40
    assert peak < 1200  # about 600 of them torch and transformers


def test_a_long_manifest_of_unknown_fields_is_refused_in_bounded_memory(copy: Path) -> None:
    fields = ",".join(f'"f{n}": 1' for n in range(90_000))
    (copy / "redline.json").write_text("{" + fields + "}")
    before = peak_mib()
    with pytest.raises(BundleError, match="manifest"):
        Bundle.load(copy)
    assert peak_mib() - before < LIMIT_MIB


def test_a_large_manifest_within_the_limits_is_read(copy: Path) -> None:
    edit_json(copy / "redline.json", metrics={f"m{n}": [0.5] * 10 for n in range(5000)})
    assert len(Bundle.load(copy).manifest.metrics) == 5000


def test_the_turn_of_a_plain_template_may_only_use_the_role(tmp_path: Path) -> None:
    for turn in ("{role!r}", "{role:>9}", "{role.upper}", "{0}", "{"):
        with pytest.raises(BundleError, match=r"template\.turn"):
            _with_turn(tmp_path, turn)
    _with_turn(tmp_path, "<{role}>{{}}")


def _with_turn(folder: Path, turn: str) -> None:
    from redline_model.bundle.manifest import parse_manifest

    manifest = Manifest(
        kind="seq2seq",
        base_model="x",
        max_tokens=8,
        template=Template(style="plain", turn=turn),
        extraction=Extraction(),
    )
    (folder / "redline.json").write_text(manifest.model_dump_json())
    parse_manifest(folder)
