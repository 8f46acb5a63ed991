"""Results that `make claims` stored are found again after names and files of the code change.

A stored policy or reward model is used again if the digest of its settings is the same. The expected digests here were
computed by the code that made the published results: a renamed class, field or file must not change them, or hours of
computation are repeated. Change them only together with the settings themselves.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from benchmarks.synthetic.budget import FULL
from benchmarks.synthetic.configurations import ABLATIONS, CONTROL, MAIN, REWARD_MODELS
from benchmarks.synthetic.jobs import ROOT, sources_digest, sources_of, sources_patterns
from benchmarks.synthetic.seed_run import SeedRun, ancestry, run_ancestry
from benchmarks.synthetic.tasks.suite import (
    CONTROLS,
    TASKS,
    demonstrations,
    draw_questions,
    pairs,
    synthetic_task,
)

FINGERPRINT = "51819a1c6b8a7a413c0f4ccf219ae218710d113699de701be181a543a5ae3987"
POLICIES = {
    "ppo_seq2seq": "79e0dbcd0ddd6e10f3f7d2feae6925a23a9c5de06719f2b3b9c895c5ef4b0c8f",
    "ppo_scalar": "45b9bdde68441772dfbfe4c877d87b0982e43e10817270e7489fe8c7fd61a84b",
    "ppo_ensemble": "2dd0c79fce0dbca1a79b91a1e9afb2c2911a6d6492d4eff4dfe1338a3d2cd71c",
    "ppo_length_calibrated": "954d8b8898d184bdb1026e3ce234d3200fd4fde87192468f9471dbd1ee97d36e",
    "mode_logprob_centered": "a7b3d390d759f8a0f33ad5d8d05add6d3bf8c5aa9d20b59ac086afa2e1f4aa74",
    "mode_paper_mean": "1161a2d8197c1e1cf18c7cf66f73c6facec4a652dc6a193a447da3aa1e954fd2",
    "mode_margin_last": "01a6b45982ade4573fc18b521df5c650cf691d73b176b7ecf258eed3a741b775",
    "positives_only": "1567ef7525e6815f3089ac071463682ff46a7626659ca8b6ba5d28ce37d82953",
    "strays_only": "fa51e1ca2b453847a06de0e5ecd28f1323073fae67c45393a5cf406a05b17538",
    "seq2seq_pairs_5": "bee55163fe8d2c0199750690cf01ab58d3fab5128f7ac07f18d550e59e7d6766",
}
MODELS = {
    "seq2seq": "4146e14be0a98ce2a31483f374db6620f2804bfe688c8c2e81a7cd1efa5d238b",
    "published": "90f5a65ab38f70521f0fe9e3bae77db44a98987cc487c7de31ff84d751f3a7e6",
    "scalar_b": "4d8f1df32e42444d41eca349c0e67bbdcc3faa11c985fb3ec93bcff475939116",
    "odin": "533c1aff12311d059b0c32a7e6ea247e9fdfa216a5cf463d6c27839adb66e2f3",
    "smoothed": "0f985068320b752a1c5a8f2147b220f02ca1b0d4719cd3c1db3e94a5312e64c8",
    "dpo_long": "cd6c27eb614a7eb88cd90cf6886f59aefc061a0fbb133ea94602d9f35eb1fd1d",
    "red": "d7f3962bb5382ee9b62566c3da6d9e11231cdc80b8553cbd0ee1982a7e912015",
    "ensemble": "2d78ed1c2ca4123663439fa8c62383416be3c2252f488b4cafa561a6b7634e37",
    "ensemble_min": "bc547cbc58589d1a2e56dea41caef8c415f87b6771ccbd9be76564e0a20b122d",
    "length_calibrated": "9dbaf985257c770ef11c69ae2df01d0ad4bc5dd7c4c3ef371c2f8c3398c5f1e0",
    "strays_only": "12dcaac794f4c5f5ef36fac848bf6fe5b5284d26c41f23116bc0e216497f9605",
    "scalar_noise_40": "485cfeb55c62a8461cd30a036c86e3f024ea2ef1bada6d3fcfcafcdddc7fdc81",
    "seq2seq_pairs_5": "cd1c12dc009d9957507facc522e7b020a94106cd77d1158952fca2ba22302c42",
}

# of the test questions, demonstrations and pairs of each task, seed 1
DATA = {
    "safety": "3c30a0d8336132aa",
    "help": "edf04a0c875c294d",
    "summary": "3920cca30523f807",
    "unbiased": "b688c202f337770d",
    "many_answers": "63b1bb4de6332571",
}


def test_the_fingerprint_of_a_task_seed_and_budget_is_that_of_the_published_results() -> None:
    assert SeedRun.fingerprint("safety", 1, FULL, "0123456789abcdef") == FINGERPRINT


@pytest.mark.parametrize("name", POLICIES)
def test_a_stored_policy_has_the_digest_of_its_settings(name: str) -> None:
    run = {**MAIN, **CONTROL, **ABLATIONS}[name]
    assert SeedRun.digest(FINGERPRINT, run_ancestry(run)) == POLICIES[name]


@pytest.mark.parametrize("name", MODELS)
def test_a_stored_reward_model_has_the_digest_of_its_settings(name: str) -> None:
    assert SeedRun.digest(FINGERPRINT, ancestry(name)) == MODELS[name]


def test_digests_of_different_settings_differ() -> None:
    assert len({ancestry(name) for name in REWARD_MODELS}) == len(REWARD_MODELS)


@pytest.mark.parametrize("name", DATA)
def test_the_data_of_a_task_and_seed_stays_the_same(name: str) -> None:
    """Questions, demonstrations and pairs are drawn from random generators that are seeded with strings."""
    task, annotators = synthetic_task(name)
    questions = draw_questions(task, 1, 50)
    rows = [
        [q.key for q in questions.test_id],
        [q.key for q in questions.test_ood],
        [(q.key, response) for q, response in demonstrations(task, questions, 200, 1)],
        [(json.dumps(p.prompt), p.chosen, p.rejected) for p in pairs(task, annotators, questions, 200, 1)],
    ]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == DATA[name]


@pytest.mark.parametrize("pattern", sorted({p for task in (*TASKS, *CONTROLS) for p in sources_patterns(task)}))
def test_every_source_pattern_matches_a_file(pattern: str) -> None:
    """A moved file would otherwise silently leave the digest of the sources."""
    assert any(path.is_file() for path in ROOT.glob(pattern)), pattern


def test_stored_digests_are_kept_although_the_code_has_changed(tmp_path: Path) -> None:
    stored = {task: f"{number:016x}" for number, task in enumerate((*TASKS, *CONTROLS))}
    assert all(stored[task] != sources_digest(task) for task in stored)
    (tmp_path / "sources.json").write_text(json.dumps(stored))
    assert sources_of(tmp_path, keep=True) == stored
    assert json.loads((tmp_path / "sources.json").read_text()) == stored
