"""The benchmarks measure what they say: the same answers from every contender, operations counted by hand."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import torch

from benchmarks import bundles, gpu
from benchmarks.ceiling import body_parameters, fewest_operations
from benchmarks.reference_server import left_padded
from benchmarks.report import markdown
from benchmarks.serving import exactness, figures, percentile
from benchmarks.training import collate, example
from benchmarks.workloads import Texts, build_workloads
from redline_model.bundle import Bundle
from redline_model.extraction import Reading
from redline_model.loading import Placement
from redline_model.template import EncodedItem, Item


def test_the_reference_gives_redline_s_paper_rewards(bundle: Bundle) -> None:
    scorer = bundle.scorer
    items = [scorer.encoder.encode(Item(f"Prompt {n}", "Hold the button. " * n)) for n in (1, 2, 3)]
    plain = left_padded(scorer.model, items)
    ours = [scorer.read(m, Reading("paper", "sum")).rewards for m in scorer.measure(items)]
    assert exactness(ours, plain)["unexplained_by_a_tie"] == 0


def test_operations_by_hand(bundle: Bundle) -> None:
    model = bundle.scorer.model
    config = model.config
    prompt, own = [1, 2, 3], EncodedItem([1, 2, 3], [4, 5], [6], [4, 5, 0], [], "")
    body = 2 * body_parameters(model)
    pair = 4 * config.hidden_size * config.num_hidden_layers
    row = 2 * config.vocab_size * config.hidden_size
    # own tokens read: two of the response, one of the request, two of the target
    once = len(prompt) * body + pair * 6
    each = 5 * body + pair * (4 + 5 + 6 + 7 + 8) + 3 * row
    assert fewest_operations([own], model) == pytest.approx(once + each)
    assert fewest_operations([own, own], model) == pytest.approx(once + 2 * each)
    # two layers of q, k, v, o and a gated feed-forward block, by the configuration
    heads = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    layer = 2 * config.hidden_size * (config.hidden_size + heads) + 3 * config.hidden_size * config.intermediate_size
    assert body_parameters(model) == layer * config.num_hidden_layers


def test_workloads_have_the_shape_they_are_named_for() -> None:
    texts = Texts(bundles.built_tokenizer(), None, seed=0)
    by_name = {w.name: w for w in build_workloads(texts, share=0.25)}
    assert set(by_name) == {"single", "rollout", "groups", "long", "mixed"}
    assert all(len(call) == 1 for call in by_name["single"].calls)
    assert len({item["prompt"] for item in by_name["single"].items}) * 8 == len(by_name["single"].items)
    rollout = by_name["rollout"].items
    assert len({item["prompt"] for item in rollout}) == len(rollout)
    assert len(by_name["groups"].calls) == 1


def test_percentiles() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert percentile([7.0], 0.99) == 7.0


def test_the_plain_trainer_s_loss_is_on_targets_alone() -> None:
    item = EncodedItem([1, 2], [3], [4], [3, 0], [], "")
    row = example(item)
    assert row["input_ids"] == [1, 2, 3, 4, 3, 0]
    assert row["labels"] == [-100, -100, -100, -100, 3, 0]
    batch = collate([row, example(EncodedItem([1], [], [4], [0], [], ""))])
    assert batch["labels"][1].tolist() == [-100, -100, 0, -100, -100, -100]
    assert batch["attention_mask"].sum().item() == 6 + 3


def test_the_accelerator_benchmark_runs_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bundles.SHAPES, "tiny", (64, 128, 2, 4, 2, 2048))
    placement = Placement(device="cpu", dtype="float32")
    bundle = gpu.random_bundle("tiny", placement, seed=0, is_compiled=False, cache=4096)
    texts = Texts(bundles.built_tokenizer(), None, seed=0)
    found = asyncio.run(gpu.measure(bundle, texts, deep=1, repeats=1, budget=None))
    assert found["groups"]["items"] == 64
    assert 0 < found["groups"]["utilisation"] < 1
    assert found["single"]["times_reference"] > 0
    json.dumps(found)


def test_a_report_becomes_the_tables_of_the_page() -> None:
    row: dict[str, Any] = {"tokens_per_s": 10.0, "p50_ms": 5.0, "p95_ms": 6.0, "peak_mb": 7.0, "share_of_ceiling": 0.5}
    names = ("redline_http", "redline_engine", "reference_server", "transformers_padded")
    workload = {"contenders": dict.fromkeys(names, row), "ceiling_tokens_per_s": 20.0}
    assert "| `groups` | 1.00 | 1.00 | 1.00 | 0.50 | 6 | 5 |" in markdown({"workloads": {"groups": workload}})


def test_figures_are_medians_over_turns() -> None:
    from benchmarks.contenders import Run

    runs = [Run(2.0, [1.0, 2.0], []), Run(1.0, [0.5, 1.0], []), Run(4.0, [3.0, 4.0], [])]
    found = figures(runs, [100, 100, 100], 5.0, [0.1, 0.2, 0.3])
    assert found["tokens_per_s"] == 50.0
    assert found["share_of_ceiling"] == 0.2
    assert {"tokens_per_s", "p50_ms", "p95_ms", "p99_ms", "peak_mb"} <= set(found)


def test_nothing_here_needs_an_accelerator() -> None:
    assert gpu.nominal_peak(torch.device("cpu")) is None
