"""Models of ``POST /v1/correct``: the model's rewrite of a response, once or until the text stays the same."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from redline.wire.base import AnswerModel, EditsBy, FirstError, OnTooLong, WireModel
from redline.wire.inputs import Text
from redline.wire.score import AppliedOptions, Edit, ItemError, ModelRef, ResponseItem, Usage

MAX_ROUNDS = 16

# Why rewriting ended:
# "fixed_point"  the last rewrite returned its own input: rewriting again changes nothing
# "cycle"        the last rewrite returned an earlier text, the response itself or an earlier rewrite
# "max_rounds"   the requested number of rewrites was made
# "incomplete"   the last rewrite reached its length limit
# "empty"        the last rewrite is empty
# "too_long"     the last rewrite is too long to be rewritten again
Ended = Literal["fixed_point", "cycle", "max_rounds", "incomplete", "empty", "too_long"]


class CorrectOptions(WireModel):
    """Options of a correction.

    ``max_rounds``: maximum number of rewrites, each of the previous one. ``score_after``: score the correction; this
    takes one more forward pass if rewriting did not compute the score. ``edits``: as in ``ScoreOptions``.
    """

    max_rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 1
    score_after: bool = False
    edits: EditsBy | None = None
    on_too_long: OnTooLong = "error"


class CorrectRequest(WireModel):
    """Body of ``POST /v1/correct``."""

    model: Text = "default"
    items: Annotated[list[ResponseItem], FirstError]
    options: CorrectOptions = Field(default_factory=CorrectOptions)


class ItemCorrection(AnswerModel):
    """The correction of one response.

    ``correction``: the text of the last rewrite; ``edits`` turn the response into it. ``rounds``: number of rewrites.
    ``score_before``: score of the response, with the bundle's default mode and aggregate. ``score_after``: score of the
    correction; set if rewriting computed it (always at a fixed point of a finished response) or if it was requested,
    but not for a correction that is empty or too long. ``truncated``: in some round the oldest part of the prompt was
    cut to fit.
    """

    id: str | None = None
    correction: str
    ended: Ended
    rounds: int
    edits: Annotated[list[Edit], FirstError]
    score_before: float
    score_after: float | None = None
    truncated: bool = False

    @property
    def is_complete(self) -> bool:
        """False if the correction was cut at its length limit."""
        return self.ended != "incomplete"

    @property
    def is_fixed_point(self) -> bool:
        """Whether the model does not change the correction any more."""
        return self.ended == "fixed_point"


CorrectionResult = ItemCorrection | ItemError


class CorrectResponse(AnswerModel):
    """Answer to ``POST /v1/correct``, in the order of the request; ``options``: how its scores were computed."""

    model: ModelRef
    options: AppliedOptions
    items: Annotated[list[Annotated[CorrectionResult, Field(union_mode="left_to_right")]], FirstError]
    usage: Usage
