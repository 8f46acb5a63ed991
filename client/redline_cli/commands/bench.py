"""``redline bench``: token rewards and rankings of any scorer with a URL, on public sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from redline.errors import CommandError
from redline.files.atomic import check_file_writable
from redline.http.exchange import DEFAULT_URL
from redline.wire import ScoreOptions
from redline_cli.options import Key, Url
from redline_cli.terminal import notice, prepare_torch, print_line, progress_bar, require_modules

if TYPE_CHECKING:
    from redline.benchmark.run import SetResult
    from redline.benchmark.scorers import BenchmarkScorer
    from redline.benchmark.sets import SetFile

TASKS = ("localisation", "ranking")


class Kind(StrEnum):
    """What answers at the URL."""

    REDLINE = "redline"
    VLLM = "vllm"
    VLLM_CLASSIFY = "vllm-classify"
    OPENRLHF = "openrlhf"
    SGLANG = "sglang"


def bench(
    task: Annotated[str, typer.Argument(help="localisation, ranking, or one FILE (its rows decide the task).")],
    files: Annotated[list[Path] | None, typer.Argument(help="Files of pairs, with or instead of --data.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    kind: Annotated[
        Kind,
        typer.Option(
            help="What answers at the URL. vllm: log-probabilities of a language model. vllm-classify, openrlhf, "
            "sglang: one score per response, so ranking only."
        ),
    ] = Kind.REDLINE,
    data: Annotated[Path | None, typer.Option(help="Folder with the files of the known sets.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Only this set of --data; repeatable.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N responses (or comparisons) of each set.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file, written after each set. An existing one is continued.")
    ] = None,
    baselines: Annotated[
        list[Path] | None,
        typer.Option(help="--out file of another scorer: show its rows and the paired differences; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the scorer in tables; default: the kind.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model in requests.")] = None,
    mode: Annotated[str | None, typer.Option(help="Reward mode (redline); default: the bundle's.")] = None,
    aggregate: Annotated[str | None, typer.Option(help="sum, mean or last (redline); sum or mean (vllm).")] = None,
    truncate: Annotated[bool, typer.Option(help="Cut prompts that are too long (redline).")] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of a tokenizer whose chat template renders the prompts (engines)."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Error score above which a word is reported; default: 0 if the mode has one."),
    ] = None,
) -> None:
    """Measure a scorer on public sets: do its token rewards find marked words, does it rank pairs as people did?"""
    from redline.benchmark.results import ResultsFile, read_results
    from redline_cli.bench_table import set_table

    task, chosen = _task_and_files(task, files or [], data, tuple(sets or ()))
    others = [read_results(path) for path in baselines or []]
    if out is not None:
        check_file_writable(out)
    options = ScoreOptions(mode=mode, aggregate=aggregate, on_too_long="truncate" if truncate else "error")
    with _scorer(kind, url, key, model, options, tokenizer, threshold) as scorer:
        if task == "localisation" and not scorer.has_token_rewards:
            raise CommandError(f"--kind {kind} gives one score per response; localisation needs token rewards")
        identity = scorer.identity()
        label = name or (f"redline {identity['mode'] or identity['model_kind']}" if kind == Kind.REDLINE else kind)
        run = {"task": task, "scorer": identity, "threshold": scorer.threshold, "limit": limit}
        results = ResultsFile(out, label, run)
        for file in chosen:
            if file.state == "modified":
                notice(f"{file.path} is not the published file of {file.name}: its digest differs", is_warning=True)
            stored = results.done(file)
            if stored is None:
                stored = results.add(file, _run_set(task, scorer, file, limit))
            print_line(set_table(file.name, task, label, stored, _other_rows(others, task, file, label)) + "\n")


def _other_rows(others: Sequence[dict[str, Any]], task: str, file: SetFile, label: str) -> dict[str, Any]:
    """The stored results of the same file by name; equal names get a number."""
    rows: dict[str, Any] = {}
    for other in others:
        stored = other["sets"].get(file.name)
        if stored is not None and other["run"].get("task") == task and stored["file"]["sha256"] == file.sha256:
            wanted = str(other.get("name", "other"))
            count = sum(known.split(" #")[0] == wanted for known in (label, *rows))
            rows[f"{wanted} #{count + 1}" if count else wanted] = stored
    return rows


def _task_and_files(
    task: str, files: Sequence[Path], data: Path | None, names: tuple[str, ...]
) -> tuple[str, list[SetFile]]:
    """The task and its files. Raises CommandError, RowsError and OSError."""
    from redline.benchmark.examples import has_spans
    from redline.benchmark.sets import known_files, set_file

    if task not in TASKS:
        path = Path(task)
        if not path.is_file():
            raise CommandError(f"{task!r} is neither localisation nor ranking, nor a file")
        files = [path, *files]
        task = "localisation" if has_spans(path) else "ranking"
    chosen = [set_file(path) for path in files]
    if data is not None:
        try:
            chosen += known_files(data, needs_spans=task == "localisation", names=names)
        except KeyError as error:
            raise CommandError(error.args[0]) from error
    if not chosen:
        raise CommandError("there are no sets: give files, or --data FOLDER with the files of known sets")
    repeated = {file.name for file in chosen if sum(other.name == file.name for other in chosen) > 1}
    if repeated:
        raise CommandError(f"two files have the name {sorted(repeated)[0]!r}")
    return task, chosen


def _run_set(task: str, scorer: BenchmarkScorer, file: SetFile, limit: int | None) -> SetResult:
    from redline.benchmark.examples import comparisons, marked_responses
    from redline.benchmark.run import run_localisation, run_ranking

    with progress_bar(file.name, 1) as bar:

        def progress(done: int, total: int) -> None:
            bar.resize(total)
            bar.update(done, "")

        if task == "localisation":
            return run_localisation(scorer, marked_responses(file.path, limit), progress)
        return run_ranking(scorer, comparisons(file.path, limit), progress)


@contextmanager
def _scorer(
    kind: Kind,
    url: str,
    key: str | None,
    model: str | None,
    options: ScoreOptions,
    tokenizer: str | None,
    threshold: float | None,
) -> Iterator[BenchmarkScorer]:
    from redline.benchmark.engine_http import EngineHTTP
    from redline.benchmark.engines import EngineKind, EngineScorer
    from redline.benchmark.prompt_texts import PromptTexts
    from redline.benchmark.scorers import RedlineScorer
    from redline.client import RewardClient

    if kind == Kind.REDLINE:
        if tokenizer is not None:
            raise CommandError("--tokenizer is for engines: a Redline service renders prompts itself")
        with RewardClient(url, key=key) as client:
            yield RedlineScorer(client, model=model or "default", options=options, threshold=threshold)
        return
    if options.mode is not None or options.on_too_long != "error":
        raise CommandError("--mode and --truncate need --kind redline")
    if options.aggregate not in ({None, "sum", "mean"} if kind == Kind.VLLM else {None}):
        raise CommandError(f"--aggregate {options.aggregate} is not possible with --kind {kind}")
    texts = PromptTexts(None if tokenizer is None else _load_tokenizer(tokenizer))
    http = EngineHTTP(url, key=key)
    try:
        yield EngineScorer(
            cast(EngineKind, kind.value),
            http,
            texts=texts,
            model=model,
            aggregate=options.aggregate,
            threshold=threshold,
        )
    finally:
        http.close()


def _load_tokenizer(name: str) -> Any:
    require_modules("train", "transformers")
    prepare_torch()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise CommandError(f"--tokenizer {name}: {reason}") from error
