"""``redline bench``: tables, results files, comparisons, and the services and endpoints of this project as scorers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from redline.errors import CommandError, RowsError
from redline.measures.intervals import Interval
from redline.testing import FakeService
from redline_cli.app import app
from redline_cli.bench_table import set_table
from redline_model.bundle.bundle import Bundle
from tests.commands import ended, run, served, start
from tests.ports import free_port
from tests.redline_benchmark.test_examples import write

WRONG = {"bad", "worse"}


def rows(count: int = 12) -> list[dict[str, Any]]:
    """Pairs whose rejected side has one marked word among three; every fourth one has none, and differs by a gap."""
    found = []
    for n in range(count):
        rejected, spans = f"all bad {n}", [{"start": 4, "end": 7}]
        if n % 4 == 3:
            rejected, spans = f"all good {n}", []
        found.append({"prompt": f"Say {n}.", "chosen": f"all good {n} !", "rejected": rejected, "spans": spans})
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with two files of known names and other contents."""
    write(tmp_path / "jfleg.test.jsonl.gz", rows())
    write(tmp_path / "defacto.test.jsonl.gz", rows(8))
    write(
        tmp_path / "llmbar.test.jsonl.gz",
        [{**row, "spans": None, "subset": f"s{n % 2}"} for n, row in enumerate(rows())],
    )
    return tmp_path


@pytest.fixture
def fake() -> FakeService:
    """Finds the wrong words."""
    return FakeService(lambda word: -1.0 if word in WRONG else 0.1)


@pytest.fixture
def url(fake: FakeService) -> Iterator[str]:
    with served(fake) as address:
        yield address


def bench(*arguments: Any) -> Any:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def table_lines(result: Any) -> list[str]:
    return [line for line in result.stdout.splitlines() if line]


def test_localisation_of_a_perfect_scorer(url: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = bench("localisation", "--url", url, "--data", data, "--out", out, "--threshold", 0, "--name", "best")
    stored = json.loads(out.read_text())
    assert list(stored["sets"]) == ["jfleg", "defacto"], "only sets with spans"
    jfleg = stored["sets"]["jfleg"]
    assert jfleg["counts"] == {"responses": 12, "failed": 0, "clean": 3, "words": 36, "marked_words": 9}
    for name in ("auc", "pooled_auc", "precision", "detection", "left_alone", "reported"):
        assert jfleg["figures"][name]["mean"] == 1.0, name
    random = jfleg["baselines"]["random"]
    assert (random["auc"]["mean"], random["pooled_auc"]["mean"], random["detection"]["mean"]) == (0.5, 0.5, 0.5)
    assert random["precision"]["mean"] == pytest.approx(1 / 3)
    assert stored["run"]["scorer"]["model"] == "sha256:fake"
    lines = table_lines(result)
    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("best ") and "1.000" in line for line in lines)
    assert "CC BY-NC-SA 4.0; file modified" in result.output
    assert "good" not in out.read_text(), "results have no text of the responses"


def test_without_a_threshold_no_response_counts_as_left_alone(url: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    bench("localisation", "--url", url, "--data", data, "--out", out)
    assert not {"left_alone", "reported"} & set(json.loads(out.read_text())["sets"]["jfleg"]["figures"])


def test_a_run_continues_after_its_last_complete_set(fake: FakeService, url: str, data: Path, tmp_path: Path) -> None:
    out, arguments = tmp_path / "out.json", ("localisation", "--url", url, "--data", data)
    first = bench(*arguments, "--set", "defacto", "--out", out)
    requests = len(fake.requests)
    again = bench(*arguments, "--set", "defacto", "--out", out)
    assert len(fake.requests) == requests
    assert table_lines(again)[-6:] == table_lines(first)[-6:]
    bench(*arguments, "--out", out)
    texts = {item.response for request in fake.requests[requests:] for item in request.items}
    assert len(texts) == 12, "only jfleg"
    write(data / "defacto.test.jsonl.gz", rows(4))
    bench(*arguments, "--out", out)
    assert json.loads(out.read_text())["sets"]["defacto"]["counts"]["responses"] == 4, "another file is run again"


def test_a_file_of_another_run_is_not_continued(fake: FakeService, url: str, data: Path, tmp_path: Path) -> None:
    out, arguments = tmp_path / "out.json", ("localisation", "--url", url, "--data", data)
    bench(*arguments, "--out", out)
    before = out.read_bytes()
    with pytest.raises(RowsError, match="another run"):
        bench(*arguments, "--out", out, "--limit", 3)
    fake.digest = "sha256:other"
    with pytest.raises(RowsError, match="another run"):
        bench(*arguments, "--out", out)
    assert out.read_bytes() == before
    out.write_text("[]")
    with pytest.raises(RowsError, match="not a results file"):
        bench(*arguments, "--out", out)


def test_rows_and_paired_differences_of_another_scorer(url: str, data: Path, tmp_path: Path) -> None:
    worse = FakeService(lambda word: 1.0 if word in WRONG else 0.1)
    with served(worse) as other_url:
        other = tmp_path / "other.json"
        bench("localisation", "--url", other_url, "--data", data, "--out", other, "--name", "reversed")
    result = bench("localisation", "--url", url, "--data", data, "--baselines", other, "--baselines", other)
    lines = table_lines(result)
    assert sum(line.startswith("reversed ") for line in lines) == 4, "two files, two sets"
    assert any(line.startswith("reversed #2") for line in lines)
    assert any(line.split() == ["minus", "reversed", "+1.000", "[+1.000,", "+1.000]", "on", "9"] for line in lines)


def test_ranking_of_pairs_with_subsets(url: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = bench("ranking", "--url", url, "--data", data, "--set", "llmbar", "--out", out)
    figures = json.loads(out.read_text())["sets"]["llmbar"]["figures"]
    assert figures["accuracy"]["mean"] == 1.0
    assert {"accuracy/s0", "accuracy/s1", "subset_mean"} <= set(figures)
    assert json.loads(out.read_text())["sets"]["llmbar"]["baselines"]["longer response"]["accuracy"]["mean"] == 1.0
    assert all(len(line) <= 80 for line in table_lines(result))


def test_a_file_decides_its_task_by_its_rows(url: str, tmp_path: Path) -> None:
    assert "AUC within responses" in bench(write(tmp_path / "a.jsonl", rows()), "--url", url).output
    styled = [{"prompt": "x", "chosen": ["a", "a b", "a b c"], "rejected": ["bad", "bad b", "bad b c"]}]
    found = bench(write(tmp_path / "b.jsonl", styled), "--url", url).output
    assert "hard" in found
    assert "(one prompt)" in found


def test_ties_count_half_and_are_shown(tmp_path: Path) -> None:
    with served(FakeService(lambda word: 0.0)) as url:
        found = bench("ranking", write(tmp_path / "a.jsonl", rows()), "--url", url).output
    assert "12 comparisons, 12 ties" in found
    assert "0.500" in found


def test_responses_that_the_scorer_refuses_are_counted(url: str, tmp_path: Path) -> None:
    blank = {"prompt": "x", "chosen": "", "rejected": "b c"}
    path = write(tmp_path / "a.jsonl", [*rows(), blank])
    found = bench("ranking", path, "--url", url).output
    assert "12 comparisons" in found
    assert "not scored: 1" in found
    with pytest.raises(Exception, match="nothing was scored"):
        bench("ranking", write(tmp_path / "b.jsonl", [blank]), "--url", url)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["localisation", "FILE", "--kind", "sglang"], "localisation needs token rewards"),
        (["FILE", "--kind", "openrlhf"], "localisation needs token rewards"),
        (["nonsense"], "neither localisation nor ranking, nor a file"),
        (["localisation"], "there are no sets"),
        (["localisation", "--data", "."], "there are no sets"),
        (["localisation", "--data", ".", "--set", "jfleg"], "no set 'jfleg'"),
        (["ranking", "FILE", "FILE"], "two files have the name 'a'"),
        (["ranking", "FILE", "--kind", "vllm", "--mode", "paper"], "need --kind redline"),
        (["ranking", "FILE", "--kind", "vllm", "--aggregate", "last"], "not possible"),
        (["ranking", "FILE", "--tokenizer", "x"], "renders prompts itself"),
        (["ranking", "FILE", "--kind", "vllm", "--tokenizer", "nowhere/none"], "--tokenizer nowhere/none"),
    ],
)
def test_what_cannot_be_run_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", rows())
    (tmp_path / "empty").mkdir()
    named = [{"FILE": "a.jsonl", ".": "empty"}.get(argument, argument) for argument in arguments]
    with pytest.raises(CommandError, match=message):
        bench(*named)


def test_long_names_and_reasons_keep_to_80_columns() -> None:
    interval = Interval(0.123, 0.1, 0.2, 9999, 9999)._asdict()
    names = ("auc", "pooled_auc", "precision", "detection", "left_alone", "reported")
    stored = {
        "file": {"licence": "a very long licence " * 9, "state": "modified"},
        "counts": {"responses": 10**6, "clean": 10**6, "words": 10**8, "marked_words": 3, "failed": 4},
        "first_failure": "a long reason " * 20,
        "figures": dict.fromkeys(names, interval),
        "baselines": {"a long name of a baseline": dict.fromkeys(names, interval)},
        "values": {"1": {"auc": 0.5}},
        "groups": {"1": "1"},
    }
    table = set_table("a long name " * 9, "localisation", "the name of a scorer is long", stored, {"x" * 99: stored})
    assert max(map(len, table.splitlines())) == 80
    assert sum(line.endswith("0.123") for line in table.splitlines()) == 3, "no column is cut"


@pytest.fixture(scope="module")
def service(bundle: Bundle) -> Iterator[str]:
    """The service's own process."""
    address = f"http://127.0.0.1:{free_port()}"
    with ended(start("serve", str(bundle.folder), "--port", address.rsplit(":", 1)[1])):
        assert run("health", "--url", address, "--wait-s", "60").returncode == 0
        yield address


def test_a_served_bundle_localises(service: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows())
    command = ("bench", "localisation", str(path), "--url", service, "--mode", "margin")
    ran = run(*command, "--out", str(tmp_path / "out.json"))
    assert ran.returncode == 0, ran.stderr
    stored = json.loads((tmp_path / "out.json").read_text())
    assert stored["run"]["scorer"]["kind"] == "redline"
    assert stored["run"]["threshold"] == 0.0, "margin has a threshold"
    assert stored["sets"]["a"]["counts"]["responses"] == 12
    assert "redline margin" in ran.stdout


def test_the_compatible_endpoints_rank_as_the_service_does(service: str, bundle: Bundle, tmp_path: Path) -> None:
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"], "spans": None} for row in rows(20)[::2]]
    path = write(tmp_path / "a.jsonl", [*rows(20)[1::2], *swapped])
    values: dict[str, Any] = {}
    for kind in ("redline", "vllm-classify", "openrlhf", "sglang"):
        out = tmp_path / f"{kind}.json"
        options = [] if kind in {"redline", "vllm-classify"} else ["--tokenizer", bundle.folder]
        bench("ranking", path, "--url", service, "--kind", kind, "--out", out, *options)
        values[kind] = json.loads(out.read_text())["sets"]["a"]["values"]
    assert {found["accuracy"] for found in values["redline"].values()} == {0.0, 1.0}, "both outcomes occur"
    assert all(found == values["redline"] for found in values.values())
