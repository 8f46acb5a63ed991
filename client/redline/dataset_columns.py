"""Adds scores to a Hugging Face data set as columns: a function for ``datasets.Dataset.map``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redline.client import RewardClient
from redline.errors import ItemsFailedError
from redline.files.row_files import BadRowError
from redline.http.exchange import DEFAULT_URL
from redline.preference_data.columns import PROMPT_COLUMNS, PROMPT_CONTEXT_COLUMNS
from redline.preference_data.rows import parse_prompt_and_tools
from redline.preference_data.turns import single_reply
from redline.wire import ErrorBody, ErrorCode, ItemError, ItemScore, ScoreOptions

_MISSING = ItemError(error=ErrorBody.of(ErrorCode.INVALID_REQUEST, "the prompt or the response is missing"))


class ScoreColumns:
    """``data.map(score, batched=True, batch_size=512, features=score.features(data.features))``, where ``score =
    ScoreColumns(url)``, scores every row of a data set.

    For each response column it adds ``<column>_score``, ``<column>_rewards`` and ``<column>_offsets`` (of the
    reward model's tokens, in characters), and ``<column>_error``, empty if there is no error; a row that cannot be
    scored has nulls. The function can be pickled (``num_proc=``); each process opens its own connections. The model's
    digest is requested once and is part of the state, so that ``map`` does not reuse cached scores of another model.

    Args:
        url, key: of the service.
        prompt: the column with prompts, texts or conversations. Columns such as ``system``, ``history`` and ``tools``
            are used as ``redline train`` does, and so are other prompt columns if there is no column ``prompt``.
        responses: the columns with responses, texts or single assistant turns, such as ``("chosen", "rejected")``.
        model, options: as in ``RewardClient.score``.
        must_succeed: raise ItemsFailedError if a row cannot be scored.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        prompt: str = "prompt",
        responses: Sequence[str] = ("response",),
        model: str = "default",
        options: ScoreOptions | None = None,
        must_succeed: bool = False,
    ) -> None:
        if not responses:
            raise ValueError("there is no response column")
        self.url = url
        self._key = key
        self._prompt = prompt
        self._responses = tuple(responses)
        self._model = model
        self._options = options
        self._must_succeed = must_succeed
        self._client: RewardClient | None = None
        with RewardClient(url, key=key) as client:
            self._digest = client.model(model).digest

    def features(self, existing: Mapping[str, Any]) -> Any:
        """``datasets.Features`` of the ``existing`` columns and the new ones.

        Needed if the first batch has only nulls.
        """
        from datasets import Features, Sequence, Value

        new: dict[str, Any] = {}
        for column in self._responses:
            new[f"{column}_score"] = Value("float64")
            new[f"{column}_rewards"] = Sequence(Value("float64"))
            new[f"{column}_offsets"] = Sequence(Sequence(Value("int64")))
            new[f"{column}_error"] = Value("string")
        return Features({**existing, **new})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def _prompt_columns(self, batch: Mapping[str, Sequence[Any]]) -> list[str]:
        """The columns of a batch that make up its prompts; the first one is a prompt column."""
        main = [name for name in PROMPT_COLUMNS if name in batch and name not in self._responses]
        if self._prompt != "prompt" or not main:
            batch[self._prompt]  # KeyError
            main = [self._prompt, *(name for name in main if name not in (self._prompt, "prompt"))]
        return [
            *main,
            *(n for n in PROMPT_CONTEXT_COLUMNS if n in batch and n not in self._responses and n not in main),
        ]

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Columns in, columns out.

        Raises:
            TypeError: called with a single row; ``map`` needs ``batched=True``.
            KeyError: a response or prompt column is missing.
            ServiceError, ConnectionFailedError, ProtocolError: as ``RewardClient.score``.
        """
        names = self._prompt_columns(batch)
        if isinstance(batch[names[0]], str):
            raise TypeError("ScoreColumns takes batches: map(..., batched=True)")
        if self._client is None:
            self._client = RewardClient(self.url, key=self._key)
        prompt_rows = [
            {"prompt" if name == self._prompt else name: value for name, value in zip(names, values, strict=True)}
            for values in zip(*(batch[name] for name in names), strict=True)
        ]
        rows = [
            _item(row, response, column)
            for column in self._responses
            for row, response in zip(prompt_rows, batch[column], strict=True)
        ]
        items = [row for row in rows if not isinstance(row, ItemError)]
        result = self._client.score(items, model=self._model, options=self._options)
        results = iter(result.items)
        all_results = [row if isinstance(row, ItemError) else next(results) for row in rows]
        failures = [(n, answer.error) for n, answer in enumerate(all_results) if isinstance(answer, ItemError)]
        if self._must_succeed and failures:
            raise ItemsFailedError(failures)
        columns: dict[str, list[Any]] = {}
        for n, column in enumerate(self._responses):
            results_of_column = all_results[n * len(prompt_rows) : (n + 1) * len(prompt_rows)]
            scored = [result if isinstance(result, ItemScore) else None for result in results_of_column]
            columns[f"{column}_score"] = [item and item.score for item in scored]
            columns[f"{column}_rewards"] = [item and item.rewards for item in scored]
            columns[f"{column}_offsets"] = [item and [list(span) for span in item.offsets] for item in scored]
            columns[f"{column}_error"] = [
                item.error.message if isinstance(item, ItemError) else "" for item in results_of_column
            ]
        return columns


def _item(row: dict[str, Any], response: Any, column: str) -> dict[str, Any] | ItemError:
    """The item to score for one row, or the error if there is none."""
    if response is None or all(value is None for value in row.values()):
        return _MISSING
    try:
        reply = single_reply(response, column)
        prompt, tools = parse_prompt_and_tools(row, reply)
    except BadRowError as error:
        return ItemError(error=ErrorBody.of(ErrorCode.INVALID_REQUEST, str(error)))
    return {"prompt": prompt, "response": reply, **({} if tools is None else {"tools": tools})}
