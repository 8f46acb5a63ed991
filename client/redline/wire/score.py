"""Models of ``POST /v1/score``: responses in, a reward for every token out.

``POST /v1/correct`` shares ``ResponseItem``, ``Edit``, ``ModelRef``, ``AppliedOptions`` and ``Usage``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from redline.spans import Span
from redline.wire.base import AnswerModel, EditsBy, FirstError, Flag, OnTooLong, WireModel
from redline.wire.errors import ErrorBody
from redline.wire.inputs import ChatMessage, Text, TokenIds, Tools, check_amount


class ResponseItem(WireModel):
    """One response to a prompt, as text or as ids of the model's own tokenizer.

    ``prompt`` is a string or a conversation. ``finished``: whether the policy ended the response with an
    end token; an unfinished response is scored without end-of-sequence token. ``response_ids`` may have an
    end-of-sequence token only at the end. ``tools``: tool definitions for the model's chat template.
    """

    id: Text | None = None
    prompt: Text | Annotated[list[ChatMessage], FirstError] | None = None
    response: Text | None = None
    prompt_ids: TokenIds | None = None
    response_ids: TokenIds | None = None
    tokenizer_fingerprint: Text | None = None
    finished: Flag = True
    tools: Tools | None = None

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        if (self.prompt is None) == (self.prompt_ids is None):
            raise ValueError("give exactly one of 'prompt' and 'prompt_ids'")
        if (self.response is None) == (self.response_ids is None):
            raise ValueError("give exactly one of 'response' and 'response_ids'")
        by_id = self.prompt_ids is not None or self.response_ids is not None
        if by_id and self.tokenizer_fingerprint is None:
            raise ValueError("ids need 'tokenizer_fingerprint' (see GET /v1/models)")
        check_amount(self.prompt if isinstance(self.prompt, list) else (), self.tools or ())
        return self

    def payload(self) -> dict[str, Any]:
        """The item as JSON-ready data, without unset fields."""
        return self.model_dump(mode="json", exclude_none=True)


class ScoreItem(ResponseItem):
    """One response to score.

    ``token_offsets`` are the spans of the caller's own tokens; with them the answer has one reward per
    token of the caller. An end-of-sequence token is an empty span at the end.
    """

    token_offsets: Annotated[list[Span], FirstError] | None = None

    @model_validator(mode="after")
    def _check_offsets_form(self) -> Self:
        if self.response_ids is not None and self.token_offsets is not None:
            raise ValueError("'token_offsets' need 'response', not 'response_ids'")
        return self


class ScoreOptions(WireModel):
    """How rewards are computed from the model's output; ``None`` means the bundle's default.

    ``ModelInfo`` lists the modes and aggregates that a model has. ``score_mode``: the mode of the score; None for
    ``mode`` if the request names one, otherwise for the bundle's default. If it differs from ``mode``, the rewards do
    not aggregate to the score.
    ``calibrated`` divides rewards by the bundle's fitted temperature and shifts the score, so that a
    difference of two scores is a log-odds of preference; the bundle must have a calibration for the mode and aggregate.
    ``edits``: ``words`` (the default), or ``groups``: edits with little text between them are joined, for people to
    read (``redline.text.edit_groups``).
    """

    mode: Text | None = None
    score_mode: Text | None = None
    aggregate: Text | None = None
    correction: bool = False
    edits: EditsBy | None = None
    calibrated: bool = False
    on_too_long: OnTooLong = "error"


class ScoreRequest(WireModel):
    """Body of ``POST /v1/score``."""

    model: Text = "default"
    items: Annotated[list[ScoreItem], FirstError]
    options: ScoreOptions = Field(default_factory=ScoreOptions)


class Edit(AnswerModel):
    """One edit from the response to its correction; offsets are into the response."""

    op: Literal["insert", "delete", "replace"]
    start: int
    end: int
    text: str


class ItemScore(AnswerModel):
    """The score of one item: a reward for every token, and their aggregate.

    ``rewards`` and ``offsets`` have one entry per token: the caller's tokens if it sent offsets, else the model's.
    ``diverged_at`` is the index of the first of the *model's* tokens where the model would have written another
    one (``None``: nowhere, or the model does not generate text). ``truncated``: the oldest part of the prompt was cut
    to fit. ``correction_complete`` is false if the rewrite reached its length limit.
    """

    id: str | None = None
    score: float
    rewards: Annotated[list[float], FirstError]
    offsets: Annotated[list[Span], FirstError]
    diverged_at: int | None = None
    truncated: bool = False
    correction: str | None = None
    correction_complete: bool | None = None
    edits: Annotated[list[Edit], FirstError] | None = None


class ItemError(AnswerModel):
    """The error of an item; the other items of its batch are not affected."""

    id: str | None = None
    error: ErrorBody


ItemResult = ItemScore | ItemError


class ModelRef(AnswerModel):
    """The model that answered; ``digest`` identifies the bundle's weights and settings."""

    name: str
    digest: str
    kind: str


class Usage(AnswerModel):
    """``scored_tokens``: response tokens that were scored; ``batch_tokens``: of the forward passes, padding too."""

    scored_tokens: int
    batch_tokens: int


class AppliedOptions(AnswerModel):
    """The options used for an answer, including defaults. The modes are None if the kind has no modes."""

    mode: str | None = None
    score_mode: str | None = None
    aggregate: str
    calibrated: bool


class ScoreResponse(AnswerModel):
    """Answer to ``POST /v1/score``; ``items`` are in the order of the request."""

    model: ModelRef
    options: AppliedOptions
    items: Annotated[list[Annotated[ItemResult, Field(union_mode="left_to_right")]], FirstError]
    usage: Usage
