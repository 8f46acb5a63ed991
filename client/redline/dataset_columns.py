"""Scores as columns of a data set: a function for ``datasets.Dataset.map``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redline.client import RewardClient
from redline.errors import ItemsFailedError
from redline.files.row_files import BadRowError
from redline.http.exchange import DEFAULT_URL
from redline.preference_data.columns import BESIDE_PROMPT, PROMPT_COLUMNS
from redline.preference_data.rows import parse_asked
from redline.preference_data.turns import single_reply
from redline.wire import ErrorBody, ErrorCode, ItemError, ItemScore, ScoreOptions

_MISSING = ItemError(error=ErrorBody.of(ErrorCode.INVALID_REQUEST, "the prompt or the response is missing"))


class ScoreColumns:
    """``data.map(score, batched=True, batch_size=512, features=score.features(data.features))``, where ``score =
    ScoreColumns(url)``, scores every row of a data set.

    For each response column it adds ``<column>_score``, ``<column>_rewards`` and ``<column>_offsets`` (the model's own
    tokens, in characters), and ``<column>_error``, empty where all is well; a row that cannot be scored has nulls,
    never zeros. It can be sent to other processes (``num_proc=``); each connects for itself. The service is asked once
    which model it serves, so that ``map``'s cache does not give one model's scores for another's.

    Args:
        url, key: of the service.
        prompt: the column with prompts, texts or conversations. What stands beside it (``system``, ``history``,
            ``tools``) is read as train reads it, and so are other forms where there is no column ``prompt``.
        responses: the columns with responses, texts or single assistant turns, such as ``("chosen", "rejected")``.
        model, options: as in ``RewardClient.score``.
        must_succeed: raise ItemsFailedError where a row cannot be scored.
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

    def features(self, given: Mapping[str, Any]) -> Any:
        """``datasets.Features``: those ``given`` and the new columns', which a failed first batch would not tell."""
        from datasets import Features, Sequence, Value

        new: dict[str, Any] = {}
        for column in self._responses:
            new[f"{column}_score"] = Value("float64")
            new[f"{column}_rewards"] = Sequence(Value("float64"))
            new[f"{column}_offsets"] = Sequence(Sequence(Value("int64")))
            new[f"{column}_error"] = Value("string")
        return Features({**given, **new})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def _prompt_columns(self, batch: Mapping[str, Sequence[Any]]) -> list[str]:
        """The columns of a batch that make its prompts, the first of them one that may be the prompt."""
        main = [name for name in PROMPT_COLUMNS if name in batch and name not in self._responses]
        if self._prompt != "prompt" or not main:
            batch[self._prompt]  # KeyError
            main = [self._prompt, *(name for name in main if name not in (self._prompt, "prompt"))]
        return [*main, *(n for n in BESIDE_PROMPT if n in batch and n not in self._responses and n not in main)]

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Columns in, columns out.

        Raises:
            TypeError: a single row was given; ``map`` needs ``batched=True``.
            KeyError: a column is missing, or there is none with prompts.
            ServiceError, ConnectionFailedError, ProtocolError: as ``RewardClient.score``.
        """
        names = self._prompt_columns(batch)
        if isinstance(batch[names[0]], str):
            raise TypeError("ScoreColumns takes batches: map(..., batched=True)")
        if self._client is None:
            self._client = RewardClient(self.url, key=self._key)
        asked = [
            {"prompt" if name == self._prompt else name: value for name, value in zip(names, values, strict=True)}
            for values in zip(*(batch[name] for name in names), strict=True)
        ]
        rows = [
            _item(row, response, column)
            for column in self._responses
            for row, response in zip(asked, batch[column], strict=True)
        ]
        items = [row for row in rows if not isinstance(row, ItemError)]
        result = self._client.score(items, model=self._model, options=self._options)
        answered = iter(result.items)
        every = [row if isinstance(row, ItemError) else next(answered) for row in rows]
        failures = [(n, answer.error) for n, answer in enumerate(every) if isinstance(answer, ItemError)]
        if self._must_succeed and failures:
            raise ItemsFailedError(failures)
        columns: dict[str, list[Any]] = {}
        for n, column in enumerate(self._responses):
            answers = every[n * len(asked) : (n + 1) * len(asked)]
            told = [answer if isinstance(answer, ItemScore) else None for answer in answers]
            columns[f"{column}_score"] = [answer and answer.score for answer in told]
            columns[f"{column}_rewards"] = [answer and answer.rewards for answer in told]
            columns[f"{column}_offsets"] = [answer and [list(span) for span in answer.offsets] for answer in told]
            columns[f"{column}_error"] = [a.error.message if isinstance(a, ItemError) else "" for a in answers]
        return columns


def _item(row: dict[str, Any], response: Any, column: str) -> dict[str, Any] | ItemError:
    """What is asked of one row, or why nothing can be."""
    if response is None or all(value is None for value in row.values()):
        return _MISSING
    try:
        reply = single_reply(response, column)
        prompt, tools = parse_asked(row, reply)
    except BadRowError as error:
        return ItemError(error=ErrorBody.of(ErrorCode.INVALID_REQUEST, str(error)))
    return {"prompt": prompt, "response": reply, **({} if tools is None else {"tools": tools})}
