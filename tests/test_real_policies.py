"""The benchmark of policies on real text: its statistics, its figures, and the quick run from end to end."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.real_policies import evaluators as evaluators_module
from benchmarks.real_policies import metrics, run
from benchmarks.real_policies.__main__ import main
from benchmarks.real_policies.base_models import short_base
from benchmarks.real_policies.curves import answer, comparison, t_interval, value_at_kl
from benchmarks.real_policies.evaluators import Fluency, MissingPackageError, require, without_token_spaces
from benchmarks.real_policies.known_pairs import side_figures
from benchmarks.real_policies.metrics import Evaluators, Sample, distinct_share, energy_distance, text_figures
from benchmarks.real_policies.plan import MAIN_METHOD, METHODS, QUICK, REWARD_MODELS
from benchmarks.real_policies.tables import rendered, summary
from benchmarks.real_policies.tasks import TASKS, load_task, opening_words
from benchmarks.real_policies.training import as_rollout, kl_of, load_policy, measured_steps, sample_texts
from benchmarks.run_folder import write_json
from redline_trainer.config import TrainConfig
from tests.conftest import save_base

KINDS = TrainConfig.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]
TRAINABLE = [
    name
    for name, method in METHODS.items()
    if method.reward_model is None or REWARD_MODELS[method.reward_model]["kind"] in KINDS
]


def words_with_an_a(texts: Sequence[str]) -> list[float]:
    return [float(sum("a" in word for word in text.split())) for text in texts]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for split, count in (("train", 24), ("test", 8)):
        rows = [
            {
                "prompt": "Write.",
                "chosen": f"The {animal} number {n} likes to {verb} here .",
                "rejected": f"The {animal} number {n} like {verb} here .",
            }
            for n in range(count)
            for animal, verb in [(("cat", "dog", "cow")[n % 3], ("sleep", "eat")[n % 2])]
        ]
        rows += [{**row, "chosen": row["chosen"].replace("here", "there")} for row in rows[::3]]
        with gzip.open(folder / f"jfleg.{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def test_the_quick_run_measures_every_method_resumes_and_writes_its_tables(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(task: object, folder: Path, device: str, *, may_miss: bool) -> Evaluators:
        assert may_miss
        return Evaluators(findings=words_with_an_a, fluency=Fluency(folder, device), missing=("no chrF here",))  # type: ignore[arg-type]

    monkeypatch.setattr(run, "load_evaluators", load)
    arguments = ["--data", str(data), "--quick", "--task", "grammar", "--out", str(tmp_path), "--seeds", "2"]
    main([*arguments, "--device", "cpu", "--methods", *TRAINABLE])
    assert "no chrF here" in capsys.readouterr().out
    results = json.loads((tmp_path / "real_policies.json").read_text(encoding="utf-8"))
    task = results["tasks"]["grammar, opening"]
    assert set(task["runs"]) == set(TRAINABLE)
    assert set(task["statistics"]["against"]) == {*TRAINABLE} - {"start", MAIN_METHOD}
    for name, runs in task["runs"].items():
        assert [len(r["curve"]) for r in runs] == [1 + (name != "start") * QUICK.points] * 2
        assert all(r["curve"][0]["kl"] == pytest.approx(0, abs=1e-6) for r in runs)
        assert all({"findings_per_100_words", "fluency", "words"} <= set(r["final"]) for r in runs)
        assert all(len(r["ppo"]) == (QUICK.ppo_steps if METHODS[name].training == "ppo" else 0) for r in runs)
    assert task["runs"][MAIN_METHOD][0]["curve"][-1]["kl"] > 0
    assert all(METHODS[name].label in rendered(results) for name in TRAINABLE)
    assert all(METHODS[name].label in summary(results) for name in task["statistics"]["against"])

    # nothing is computed again; the same tables come out
    monkeypatch.setattr(run, "write_json", lambda *arguments: pytest.fail("computed again"))
    main([*arguments, "--device", "cpu", "--methods", *TRAINABLE])
    assert json.loads((tmp_path / "real_policies.json").read_text(encoding="utf-8"))["tasks"] == results["tasks"]
    # a method with other settings is, and no other
    monkeypatch.undo()
    monkeypatch.setattr(run, "load_evaluators", load)
    monkeypatch.setitem(METHODS, MAIN_METHOD, replace(METHODS[MAIN_METHOD], discount=0.9))
    computed: list[str] = []

    def record(path: Path, figures: dict[str, Any]) -> None:
        computed.append(path.stem)
        write_json(path, figures)

    monkeypatch.setattr(run, "write_json", record)
    main([*arguments, "--device", "cpu", "--methods", "start", "sft", MAIN_METHOD])
    assert {name for name in computed if not name.startswith(MAIN_METHOD)} == set()
    assert MAIN_METHOD in computed
    with pytest.raises(SystemExit, match="another plan"):
        main(["--data", str(data), "--reduced", "--base", str(tmp_path / "base"), "--out", str(tmp_path)])
    assert results["about"]["plan"]["name"] == "quick"


def test_the_base_model_gets_no_system_turn_of_its_template(base: Path, tmp_path: Path) -> None:
    assert short_base(tmp_path / "same", base) == base
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "<|im_start|>system\nBe kind.<|im_end|>\n{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "given")
    short = AutoTokenizer.from_pretrained(short_base(tmp_path / "short", tmp_path / "given"))
    text = short.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_development_texts_are_in_no_training_set(data: Path) -> None:
    loaded = load_task(TASKS["grammar"], "opening", data, QUICK)
    assert len(loaded.development) == QUICK.development
    assert len(loaded.pairs) == QUICK.pairs
    everything = load_task(TASKS["grammar"], "opening", data, replace(QUICK, pairs=1000))
    numbers = {int(pair.rejected.split()[3]) for pair in everything.pairs}
    assert numbers == set(range(20))


def test_references_are_the_rewrites_of_the_text_that_opens_so(data: Path) -> None:
    loaded = load_task(TASKS["grammar"], "opening", data, QUICK)
    assert set(loaded.test) == set(loaded.references)
    assert sum(map(len, loaded.references.values())) == 11
    constant = load_task(TASKS["grammar"], "constant", data, QUICK)
    assert constant.test == [TASKS["grammar"].instruction]
    assert constant.references == {}


def test_the_opening_is_never_the_whole_text() -> None:
    assert opening_words("one two three four five six seven") == "one two three"
    assert opening_words("one two three four") == "one two"
    assert opening_words("one") == "one"


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "harper", None)
    with pytest.raises(MissingPackageError, match=r"harper-py .*\[judges\]"):
        require("harper")
    monkeypatch.setattr(metrics, "Fluency", lambda *arguments: None)
    monkeypatch.setattr(evaluators_module, "find_spec", lambda name: None)
    assert any(
        "harper-py" in m for m in metrics.load_evaluators(TASKS["grammar"], Path(), "cpu", may_miss=True).missing
    )
    with pytest.raises(MissingPackageError):
        metrics.load_evaluators(TASKS["grammar"], Path(), "cpu", may_miss=False)


def test_spaces_before_punctuation_are_removed() -> None:
    assert without_token_spaces("I do n't know , `` he said '' ( once ) .") == 'I don\'t know, " he said " (once).'


def test_kl_of_samples_estimates_the_divergence_of_the_distributions() -> None:
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 8).log_softmax(-1)
    tokens = torch.multinomial(policy.exp(), 40_000, replacement=True).view(-1, 2)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    exact = 2 * float((policy.exp() * (policy - reference)).sum())
    estimates = kl_of(policy[tokens], reference[tokens], mask)
    assert estimates.min() >= 0
    assert float(estimates.mean()) == pytest.approx(exact, rel=0.03)
    assert kl_of(policy[tokens], reference[tokens], ~mask).sum() == 0


def test_fluency_is_the_mean_log_probability_of_the_tokens(base: Path) -> None:
    fluency = Fluency(base, "cpu")
    ids = torch.tensor(
        [[fluency._start, *fluency._tokenizer("hold the button", add_special_tokens=False)["input_ids"]]]
    )
    logprobs = fluency._model(ids).logits.detach().float().log_softmax(-1)[0, :-1]
    expected = float(logprobs.gather(-1, ids[0, 1:, None]).mean())
    found = fluency(["a much longer text that is padded to", "hold the button", ""])
    assert found[1] == pytest.approx(expected, abs=0.02 if fluency._has_bfloat16 else 1e-4)
    assert found[2] is None


def test_sampling_for_a_measurement_leaves_the_training_run_as_it_was(base: Path) -> None:
    policy = load_policy(base, 6, "cpu", "float32")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    samples = sample_texts(policy, ["Hello"] * 3, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert sample_texts(policy, ["Hello"] * 3, 5) == samples
    assert [s.kl for s in samples] == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_text_that_is_cut_has_no_end_token(base: Path) -> None:
    policy = load_policy(base, 6, "cpu", "float32")
    whole, cut = as_rollout(policy, "Hello", "a b"), as_rollout(policy, "Hello", "a b c d e f g h i")
    assert whole.is_finished
    assert whole.response_ids[-1] in policy.end_ids
    assert not cut.is_finished
    assert len(cut.response_ids) == 6
    assert cut.response_ids[-1] not in policy.end_ids


def test_figures_are_per_hundred_words_and_leave_out_what_is_missing() -> None:
    samples = [Sample("p", "a b c d", True, 1.0), Sample("q", "x y z a a a", False, 3.0)]
    figures = text_figures(Evaluators(findings=words_with_an_a), samples, samples, {})  # type: ignore[arg-type]
    assert figures["findings_per_100_words"] == pytest.approx(40)
    assert figures["findings"] == 2
    assert figures["kl"] == 2
    assert figures["finished_share"] == 0.5
    assert "toxicity" not in figures
    assert "chrf" not in figures
    assert distinct_share(["a a a", "a a"], 2) == pytest.approx(1 / 3)


def test_energy_distance_is_near_zero_within_a_distribution_and_large_between_two() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(50, 2, 100, 4, generator=generator)
    distances = [energy_distance(first, second) for first, second in draws]
    assert abs(sum(distances) / len(distances)) < 0.02
    assert energy_distance(draws[0, 0], draws[0, 1] + 2) > 1


def test_sides_are_compared_in_the_better_direction() -> None:
    figures = side_figures([0.0, 1.0, 2.0, None], [1.0, 1.0, 0.0, 5.0], -1)
    assert figures["chosen_better"] == figures["equal"] == figures["chosen_worse"] == pytest.approx(1 / 3)


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"kl": kl, "toxicity": value} for kl, value in points]


def test_a_figure_at_equal_kl_is_interpolated_where_the_run_first_reached_it() -> None:
    points = curve((0, 1.0), (1, 0.6), (3, 0.2), (2, 0.9))
    assert value_at_kl(points, "toxicity", 0.5) == pytest.approx(0.8)
    assert value_at_kl(points, "toxicity", 2) == pytest.approx(0.4)
    assert value_at_kl(points, "toxicity", 3.5) is None
    assert value_at_kl(points, "words", 1) is None


def test_intervals_are_those_of_students_t() -> None:
    interval = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == 3
    assert interval.high == pytest.approx(3 + 2.776 * (2.5**0.5) / 5**0.5)
    assert t_interval([2.0]).high is None
    with pytest.raises(ValueError, match="1 to"):
        t_interval([])


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((-0.3, -0.31, -0.29), "yes"),
        ((0.3, 0.31, 0.29), "no"),
        ((-0.3, 0.3, -0.1), "undecided"),
        ((-0.3,), "undecided"),
    ],
)
def test_the_answer_follows_from_the_interval_of_the_difference(differences: Sequence[float], expected: str) -> None:
    assert answer(t_interval(differences)) == expected


def test_methods_are_compared_at_the_largest_kl_that_both_reached() -> None:
    def runs(*curves: list[dict[str, float]]) -> list[dict[str, Any]]:
        return [{"curve": points, "final": points[-1]} for points in curves]

    # at equal KL the first is better by 0.2; at the end, where it went less far, it is worse
    main_runs = runs(curve((0, 1.0), (1, 0.6)), curve((0, 1.0), (1, 0.58)))
    others = runs(curve((0, 1.0), (4, 0.2)), curve((0, 1.0), (4, 0.21)))
    found = comparison(main_runs, others, "toxicity")
    assert found["kl"].mean == 1
    assert found["equal_kl"]["toxicity"].mean == pytest.approx(0.59 - (0.8 + 0.8025) / 2)
    assert found["beats_at_equal_kl"] == "yes"
    assert found["at_end"]["toxicity"].mean == pytest.approx(0.385)
    assert found["beats_at_end"] == "no"


def test_a_run_is_measured_at_even_steps_and_after_the_last() -> None:
    assert measured_steps(25, 5) == [5, 10, 15, 20, 25]
    assert measured_steps(2, 5) == [1, 2]
    assert measured_steps(15, 4)[-1] == 15
