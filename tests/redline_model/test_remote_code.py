"""Code in a model folder is never run, and no command asks whether to run it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from redline_model.bundle.bundle import Bundle
from redline_model.bundle.loading import load_config, load_tokenizer
from redline_model.errors import BundleError
from tests.damage import Damage, config, json_file
from tests.terminal import run_on_terminal

ROOT = Path(__file__).resolve().parents[2]
PAIR = '{"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."}\n'


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


REMOTE: dict[str, Damage] = {
    "model": config(
        model_type="theirs", auto_map={"AutoConfig": "their.Config", "AutoModelForCausalLM": "their.Model"}
    ),
    "model of another repository": config(model_type="theirs", auto_map={"AutoConfig": "them/there--their.Config"}),
    "model class alone": config(
        model_type="vit", auto_map={"AutoModelForCausalLM": "their.Model"}, architectures=["Theirs"]
    ),
    "tokenizer": json_file(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["their.Tokenizer", None]}, tokenizer_class="Theirs"
    ),
    "tokenizer in the old form": json_file(
        "tokenizer_config.json", auto_map=["their.Tokenizer", "their.TokenizerFast"], tokenizer_class="TheirsFast"
    ),
    "attention kernel": config(attn_implementation="someone/some-kernel"),
}


@pytest.mark.parametrize("has_files", [True, False])
@pytest.mark.parametrize("damage", [pytest.param(damage, id=what) for what, damage in REMOTE.items()])
def test_a_folder_that_needs_its_own_code_is_refused(copy: Path, damage: Damage, has_files: bool) -> None:
    if has_files:
        trace = copy.parent / "code was run"
        (copy / "their.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    damage(copy)
    with pytest.raises(BundleError, match="does not run code from model folders") as refusal:
        load_tokenizer(copy)
        load_config(copy)
        Bundle.load(copy)
    assert str(copy) in str(refusal.value)
    assert not (copy.parent / "code was run").exists()


def test_a_model_of_transformers_is_loaded_without_the_code_in_its_folder(copy: Path) -> None:
    config(auto_map={"AutoConfig": "their.Config", "AutoModelForCausalLM": "their.Model"})(copy)
    Bundle.load(copy)


@pytest.mark.parametrize("command", ["train", "serve", "ppo"])
def test_no_command_asks_whether_to_run_code(copy: Path, tmp_path: Path, command: str) -> None:
    (copy / "their.py").write_text("raise SystemExit('code was run')\n")
    REMOTE["tokenizer" if command == "ppo" else "model"](copy)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(PAIR * 4)
    arguments = {
        "train": ["--pairs", str(pairs), "--base", str(copy), "--out", str(tmp_path / "out")],
        "serve": [str(copy), "--port", "0"],
        "ppo": ["--policy", str(copy), "--prompts", str(pairs), "--out", str(tmp_path / "out"), "--patience-s", "1"],
    }[command]
    status, output, shown, seconds, _ = run_on_terminal(command, *arguments)
    assert status == 1, output
    assert output.count("\n") == 1
    assert f"redline: {copy} needs code of its own" in output
    assert "[y/N]" not in output + shown
    assert seconds < 30  # a few seconds on an idle machine, for the import of torch


def test_every_call_of_from_pretrained_sets_trust_remote_code_to_false() -> None:
    sources = [
        p for top in ("client", "service", "trainer", "examples", "benchmarks") for p in (ROOT / top).rglob("*.py")
    ]
    call_count = 0
    for path in sources:
        for found in re.finditer(r"\.from_(?:pretrained|config)\(", path.read_text(encoding="utf-8")):
            call = path.read_text(encoding="utf-8")[found.start() : found.start() + 250]
            assert "trust_remote_code=False" in call or "from_config(config, dtype" in call, f"{path}: {call}"
            call_count += 1
    assert call_count >= 10
