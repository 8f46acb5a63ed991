"""The real-text benchmark from end to end on a tiny model and small data sets; no figure is computed twice."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest
import torch

from benchmarks.real_text.plan import KINDS, MAIN_KINDS, Plan
from benchmarks.real_text.run import Run
from benchmarks.real_text.stages import all_figures, quality_reports
from benchmarks.real_text.surprisal import surprisal_scorer
from benchmarks.real_text.tables import rendered
from redline_model.bundle.load_options import LoadOptions
from redline_model.encoding.items import Item
from redline_trainer.evaluation.report import plot_reliability
from tests.conftest import build_causal, build_tokenizer

TINY = Plan(
    training=("marked", "chat"),
    relatives=("marked",),
    spans=("marked",),
    preferences=("chat",),
    ranked=("other",),
    judge="other",
    pairs=8,
    test_pairs=6,
    steps=2,
    pairs_per_step=4,
    max_tokens=256,
    ppo_steps=1,
    rollouts=4,
    new_tokens=6,
    prompts=3,
    precision="float32",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("real")
    tokenizer = build_tokenizer()
    model = build_causal(len(tokenizer))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for name in ("marked", "chat", "other"):
        for split in ("train", "test"):
            rows = [
                {
                    "prompt": f"How do I reset {name} {n}?",
                    "chosen": f"Hold the button {n}.",
                    "rejected": f"Open the panel {n}.",
                    "spans": [{"start": 5, "end": 14}] if name == "marked" else [],
                }
                for n in range(8)
            ]
            with gzip.open(folder / f"{name}.{split}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    return Run(folder / "out", folder / "base", folder, TINY, 0, "cpu")


def test_surprisal_is_that_of_the_plain_model(run: Run) -> None:
    scorer = surprisal_scorer(run.base, LoadOptions(device="cpu"), 256)
    item = scorer.encoder.encode(Item("How do I reset it?", "Hold the button."))
    ids = torch.tensor([[*item.prefix_ids, *item.target_ids]])
    logprobs = scorer.model(ids).logits.float().log_softmax(-1)[0, len(item.prefix_ids) - 1 : -1]
    expected = logprobs.gather(-1, torch.tensor(item.target_ids).unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(scorer.forward([item])[0].logprob, expected, atol=1e-4)


def test_every_model_is_tested_on_every_set_and_its_error_scores_are_compared_with_surprisal(run: Run) -> None:
    figures = all_figures(run, policy=False)
    assert set(figures["ranking"]) == {"marked", "chat"}
    assert set(figures["ranking"]["marked"]["chat"]) == set(KINDS)
    assert set(figures["ranking"]["chat"]["chat"]) == set(MAIN_KINDS)
    assert all(set(tests["other"]) == set(MAIN_KINDS) for tests in figures["ranking"].values())
    expected = {f"marked {kind}" for kind in KINDS} | {f"chat {kind}" for kind in MAIN_KINDS}
    expected |= {"marked red", "chat red", "base surprisal"}
    assert set(figures["blame"]["marked"]) == expected
    plot_reliability(quality_reports(figures, "chat"), run.out / "reliability.png")
    assert (run.out / "reliability.png").exists()
    table = rendered({**figures, "policies": None})
    assert "| marked | base surprisal | probability/sum |" in table
    written = {path: path.stat().st_mtime_ns for path in (run.out / "figures").iterdir()}
    assert all_figures(run, policy=False) == figures
    assert {path: path.stat().st_mtime_ns for path in (run.out / "figures").iterdir()} == written


@pytest.mark.loop
def test_policies_are_scored_by_a_model_of_other_data(run: Run) -> None:
    figures = all_figures(run, policy=True)
    policies = figures["policies"]
    assert policies["judge"] == "other"
    assert set(policies["answers"]) == {
        "base",
        "corrected",
        "best_of_2_scalar",
        "best_of_2_seq2seq",
        "ppo_seq2seq",
        "ppo_scalar",
    }
    assert policies["answers"]["base"]["wins_against_base"] is None  # all ties
    assert policies["answers"]["ppo_seq2seq"]["kl"] is not None
    assert "| ppo_seq2seq |" in rendered(figures)


def test_a_run_resumes_with_more_ranked_sets_but_not_with_another_plan(run: Run) -> None:
    run.claim()
    Run(run.out, run.base, run.data, replace(TINY, ranked=("other", "chat")), 0, "cpu").claim()
    with pytest.raises(SystemExit, match="another plan"):
        Run(run.out, run.base, run.data, replace(TINY, steps=3), 0, "cpu").claim()
