"""Commands with a Hugging Face reward model, from a folder and from the hub's cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from redline import NO_RETRY, RewardClient
from redline_model.bundle.bundle import Bundle
from tests.commands import ENVIRONMENT, ended, run, start
from tests.ports import free_port
from tests.reward_models import build_reward_model, transformers_scores

ITEMS = [("How do I reset my router?", "Hold the round button."), ("Hi", "I am sorry, but I cannot help with that.")]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def as_hub_cache(folder: Path, root: Path) -> Path:
    """``folder`` as the hub's cache keeps it, under the id someone/rm."""
    repository = root / "models--someone--rm"
    snapshot = repository / "snapshots" / COMMIT
    for place in (repository / "blobs", repository / "refs", snapshot):
        place.mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return root


def test_a_reward_model_is_served_scored_with_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_reward_model("llama", tmp_path / "rm")
    expected = transformers_scores(folder, ITEMS)
    rows, out = tmp_path / "items.jsonl", tmp_path / "scores.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in ITEMS))
    port = free_port()
    with (
        ended(start("serve", str(folder), "--port", str(port))),
        RewardClient(f"http://127.0.0.1:{port}", retry=NO_RETRY) as client,
    ):
        client.wait_until_ready(90)
        served = client.model()
        scored = run("score", str(rows), "--url", f"http://127.0.0.1:{port}", "--out", str(out))
        assert scored.returncode == 0, scored.stderr
    assert (served.kind, served.base_model) == ("scalar", str(folder))
    assert served.digest == Bundle.load(folder).digest
    assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == pytest.approx(expected, abs=2e-4)

    pairs, report = tmp_path / "pairs.jsonl", tmp_path / "report.json"
    prompt, answers = ITEMS[0][0], [response for _, response in ITEMS]
    by_score = dict(zip(transformers_scores(folder, [(prompt, answer) for answer in answers]), answers, strict=True))
    row = {"prompt": prompt, "chosen": by_score[max(by_score)], "rejected": by_score[min(by_score)]}
    pairs.write_text(json.dumps(row) + "\n")
    monkeypatch.setitem(ENVIRONMENT, "HF_HUB_CACHE", str(as_hub_cache(folder, tmp_path / "hub")))
    evaluated = run("evaluate", "someone/rm", "--pairs", str(pairs), "--out", str(report))
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(report.read_text())["accuracy"]["mean"] == 1.0
