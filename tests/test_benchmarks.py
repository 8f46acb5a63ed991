"""The speed benchmarks: backends return the same rewards, counts and statistics agree with values computed by hand."""

from __future__ import annotations

import ast
import asyncio
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.overload import QUICK, arrivals, chosen_deadline, measure_overload
from benchmarks.serving import exactness, figures
from benchmarks.speed import bundles
from benchmarks.speed.backends import WorkloadRun
from benchmarks.speed.ceiling import body_parameters, fewest_operations
from benchmarks.speed.load_generator import Recording, RequestResult, Stream, generate, request_template
from benchmarks.speed.load_results import KINDS, beyond_the_model, goodput, percentile, short_beside_long, steady_rate
from benchmarks.speed.overload_report import print_overload
from benchmarks.speed.reference_server import left_padded
from benchmarks.speed.report import markdown
from benchmarks.speed.workloads import Texts, build_workloads
from benchmarks.training import collate, example
from benchmarks.training_memory import KeptLogits, table
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.encoding.items import EncodedItem, Item
from redline_model.reward_spec import RewardSpec
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.seq2seq import Seq2SeqObjective

ROOT = Path(__file__).resolve().parents[1]


def test_the_reference_server_has_the_same_paper_rewards(bundle: Bundle) -> None:
    scorer = bundle.scorer
    items = [scorer.encoder.encode(Item(f"Prompt {n}", "Hold the button. " * n)) for n in (1, 2, 3)]
    plain = left_padded(scorer.model, items)
    rewards = [scorer.to_rewards(output, RewardSpec("paper", "sum")).rewards for output in scorer.forward(items)]
    assert exactness(rewards, plain)["unexplained_by_a_tie"] == 0


def test_operations_are_those_counted_by_hand(bundle: Bundle) -> None:
    model = bundle.scorer.model
    config = model.config
    prompt, item = [1, 2, 3], EncodedItem([1, 2, 3], [4, 5], [6], [4, 5, 0], [], "")
    body = 2 * body_parameters(model)
    pair = 4 * config.hidden_size * config.num_hidden_layers
    row = 2 * config.vocab_size * config.hidden_size
    # input tokens after the prompt: two of the response, one of the request, two of the target
    once = len(prompt) * body + pair * 6
    each = 5 * body + pair * (4 + 5 + 6 + 7 + 8) + 3 * row
    assert fewest_operations([item], model) == pytest.approx(once + each)
    assert fewest_operations([item, item], model) == pytest.approx(once + 2 * each)
    # per layer: q, k, v, o and a gated feed-forward block
    heads = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    layer = 2 * config.hidden_size * (config.hidden_size + heads) + 3 * config.hidden_size * config.intermediate_size
    assert body_parameters(model) == layer * config.num_hidden_layers


def test_workloads_have_the_shapes_of_their_names() -> None:
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


def test_the_loss_of_the_plain_trainer_is_on_targets_only() -> None:
    item = EncodedItem([1, 2], [3], [4], [3, 0], [], "")
    row = example(item)
    assert row["input_ids"] == [1, 2, 3, 4, 3, 0]
    assert row["labels"] == [-100, -100, -100, -100, 3, 0]
    batch = collate([row, example(EncodedItem([1], [], [4], [0], [], ""))])
    assert batch["labels"][1].tolist() == [-100, -100, 0, -100, -100, -100]
    assert batch["attention_mask"].sum().item() == 6 + 3


def test_the_gpu_benchmark_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bundles.SHAPES, "tiny", (64, 128, 2, 4, 2, 2048))
    load_options = LoadOptions(device="cpu", dtype="float32")
    bundle = gpu.random_bundle("tiny", load_options, seed=0, is_compiled=False, cache=4096)
    texts = Texts(bundles.built_tokenizer(), None, seed=0)
    measured = asyncio.run(gpu.measure(bundle, texts, deep=1, repeats=1, budget=None))
    assert measured["groups"]["items"] == 64
    assert 0 < measured["groups"]["utilisation"] < 1
    assert measured["single"]["times_reference"] > 0
    json.dumps(measured)


def test_a_serving_report_becomes_the_tables_of_the_results_page() -> None:
    row: dict[str, Any] = {"tokens_per_s": 10.0, "p50_ms": 5.0, "p95_ms": 6.0, "peak_mb": 7.0, "share_of_ceiling": 0.5}
    names = ("redline_http", "redline_engine", "reference_server", "transformers_padded")
    workload = {"backends": dict.fromkeys(names, row), "ceiling_tokens_per_s": 20.0}
    assert "| `groups` | 1.00 | 1.00 | 1.00 | 0.50 | 6 | 5 |" in markdown({"workloads": {"groups": workload}})


def test_figures_are_medians_over_turns() -> None:
    runs = [
        WorkloadRun(2.0, [1.0, 2.0], []),
        WorkloadRun(1.0, [0.5, 1.0], []),
        WorkloadRun(4.0, [3.0, 4.0], []),
    ]
    medians = figures(runs, [100, 100, 100], 5.0, [0.1, 0.2, 0.3])
    assert medians["tokens_per_s"] == 50.0
    assert medians["share_of_ceiling"] == 0.2
    assert {"tokens_per_s", "p50_ms", "p95_ms", "p99_ms", "peak_mb"} <= set(medians)


def test_a_cpu_has_no_nominal_peak() -> None:
    assert gpu.nominal_peak(torch.device("cpu")) is None


def scored(due: float, took: float, items: int = 1, **timing_ms: float) -> RequestResult:
    return RequestResult(due, due, due + took, 200, scored=items, timing_ms=timing_ms)


def test_goodput_counts_items_due_in_the_window_and_scored_within_the_deadline() -> None:
    results = [
        scored(0.5, 0.1, 2),  # before the window
        scored(1.0, 1.0, 2),  # exactly at its deadline
        RequestResult(1.1, 1.9, 2.2, 200, scored=2),  # in time only from when it was sent: late
        scored(1.2, 0.3, 1),  # one item of two has an error
        RequestResult(1.3, 1.3, 1.31, 503, "overloaded", retry_after="1"),
        RequestResult(1.4, 1.4, 1.43, 429, "", retry_after="1"),
        RequestResult(1.5, 1.5, 1.51, 503, "overloaded"),
        RequestResult(1.6, 1.6, 2.7, 503, "timed_out", retry_after="5"),
        RequestResult(1.7, 1.7, 1.8, 500, "internal"),
        RequestResult(1.8, 1.8, 1.8, 0),
        RequestResult(2.9, 2.9, 4.9, -1),
        scored(3.0, 0.1, 2),  # after the window
    ]
    load = goodput(results, items=2, deadline_s=1.0, from_s=1.0, until_s=3.0)
    counts = {kind: share * load["items"] for kind, share in load["shares"].items()}
    assert counts == pytest.approx({**dict.fromkeys(KINDS, 2), "in_time": 3, "item_errors": 1, "refused": 4}, rel=1e-9)
    assert load["items"] == 20
    assert load["offered_items_per_s"] == 10
    assert load["in_time_items_per_s"] == 1.5
    assert load["refused"]["p95_ms"] == pytest.approx(30)
    assert load["answers"]["503 overloaded"] == 2
    assert load["sent_late"]["p95_ms"] == pytest.approx(800)


def test_capacity_is_counted_between_the_ends_of_bursts() -> None:
    # four items each half second: the window's ends lie between bursts
    bursts = [scored(0.0, 0.5 * n) for n in range(1, 13) for _ in range(4)]
    assert steady_rate(bursts, 1.2, 4.9) == pytest.approx(8)
    with pytest.raises(ValueError, match="no item"):
        steady_rate(bursts, 7.0, 9.0)


def test_the_rest_of_a_small_request_is_its_time_without_the_model() -> None:
    rest = beyond_the_model(
        [scored(0, 0.010, inference=4.0), scored(1, 0.020, inference=18.0), RequestResult(2, 2, 3, 503)]
    )
    assert (rest["requests"], rest["not_scored"]) == (3, 1)
    assert rest["beyond_the_model"] == pytest.approx({"p50_ms": 2, "p95_ms": 6})


def test_short_items_have_a_bound_of_three_times_the_p95_alone_plus_one_batch() -> None:
    alone, long = [scored(0, 0.010)], [scored(0, 1.0, inference=200.0)]
    assert short_beside_long(alone, [scored(0, 0.229)], long)["is_within_bound"]
    assert not short_beside_long(alone, [scored(0, 0.231)], long)["is_within_bound"]
    assert not short_beside_long(alone, [scored(0, 0.01), RequestResult(0, 0, 0.01, 503)], long)["is_within_bound"]


def test_arrivals_depend_on_the_seed_and_have_the_rate() -> None:
    times = arrivals(200, 10, seed=3)
    assert times == arrivals(200, 10, seed=3) == sorted(times)
    assert len(times) == pytest.approx(2000, rel=0.1)
    assert chosen_deadline(100, 50, 2000, 1.0) == 1.6
    assert chosen_deadline(1000, 50, 2000, 1.0) == 1.0
    assert chosen_deadline(1, 50, 2000, 1.0) == 30.0


def test_the_load_generator_against_a_scripted_service() -> None:
    """Every text is new, every kind of answer is recorded, and connections are kept until they break."""
    bodies: list[dict[str, Any]] = []
    connections = 0

    def answer(status: str, body: bytes, *headers: str) -> bytes:
        head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers))
        return head.encode() + b"\r\n" + body

    good = answer(
        "200 OK", b'{"items": [{"score": 0.5}, {"error": {}}]}', "server-timing: queue;dur=1.0, inference;dur=2.5"
    )
    busy = answer("503 Busy", b'{"error": {"code": "overloaded"}}', "Retry-After: 3", "Connection: close")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                bodies.append(json.loads(await reader.readexactly(size)))
                kind = len(bodies)
                if kind == 3:  # an incomplete answer
                    writer.write(good[:-5])
                    break
                if kind == 4:  # no answer
                    continue
                for part in (busy,) if kind == 2 else (good[:30], good[30:]):
                    writer.write(part)
                    await asyncio.sleep(0.01)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def run() -> Recording:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            template = request_template("/v1/score", [{"prompt": "ä", "response": "b"}] * 2, {"X-Deadline-S": "1"})
            stream = Stream([template], 7, requests=6, give_up_s=1.0)
            return await generate(server.sockets[0].getsockname()[1], [stream])

    recording = asyncio.run(run())
    results = sorted(recording.results[0], key=lambda result: result.due_s)
    assert [o.status for o in results] == [200, 503, 0, -1, 200, 200]
    assert [o.scored for o in results] == [1, 0, 0, 0, 1, 1]
    assert results[0].timing_ms == {"queue": 1.0, "inference": 2.5}
    assert (results[1].code, results[1].retry_after) == ("overloaded", "3")
    assert connections == 4  # the last two requests used the same one
    assert [body["items"][0]["prompt"] for body in bodies] == [f"{n:08d} ä" for n in range(7, 13)]


def test_the_overload_benchmark_runs_against_a_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = bundles.build_tiny_bundle(tmp_path / "bundle", 0)
    bundle = Bundle.load(path)
    least = replace(QUICK, capacity_s=0.6, window_s=0.6, sequential=5, beside=5, loads=(2.0,), variants=("single",))
    texts = Texts(bundle.scorer.encoder.tokenizer, None, seed=0)
    report = json.loads(json.dumps(measure_overload(path, bundle, texts, replace(least, deadline_s=0.5), 0)))
    run = report["overload"]["variants"]["single"]["loads"]["2"]
    assert sum(run["shares"].values()) == pytest.approx(1)
    assert run["items"] > 0
    assert report["sequential"]["requests"] == 5
    assert report["sequential"]["latency"]["p50_ms"] > report["sequential"]["beyond_the_model"]["p50_ms"] > 0
    assert report["short_beside_long"]["short_requests"] == {"alone": 5, "beside": 5, "not_scored": 0}
    print_overload(report)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_loss_is_the_same_if_logits_are_kept(bundle: Bundle) -> None:
    encoder = bundle.scorer.encoder
    sides = [encoder.encode(Item("How?", text)) for text in ("Hold the button.", "Go away")]
    pair = EncodedPair(sides[0], sides[1], "How?")
    losses = []
    for objective in (KeptLogits(bundle.scorer.model), Seq2SeqObjective(bundle.scorer.model)):
        with torch.no_grad():
            losses.append(float(objective.loss(objective.examples(pair))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    row = {"peak_mb": 2950.4, "tokens_per_s": 77.25, "tokens_per_cpu_s": 50.0, "losses": [2.0, 1.5]}
    assert table({"chunked": row}).splitlines()[-1] == "| chunked | 2950 | 77.2 | 50.0 | 1.500000 |"


MODULES = [path for folder in ("benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short_and_documented(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_mypy_checks_benchmarks_and_examples() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert configuration["strict"]
    assert {"benchmarks", "examples"} <= set(configuration["packages"])
