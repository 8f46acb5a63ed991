"""The contract of ``POST /v1/correct``: the model's rewrite of a response, once or until the text stays the same."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from redline.wire.base import AnswerModel, EditsBy, FirstError, OnTooLong, WireModel
from redline.wire.inputs import Text
from redline.wire.score import AppliedOptions, Edit, ItemError, ModelRef, ResponseItem, Usage

MAX_ROUNDS = 16

# Why a response was not rewritten once more:
# "fixed_point"  the last rewrite returned its own input: rewriting again changes nothing
# "cycle"        the last rewrite returned an earlier text, the response itself or an earlier rewrite
# "max_rounds"   as many rewrites were made as were asked for
# "incomplete"   the last rewrite hit its length limit and breaks off
# "empty"        the last rewrite is empty: there is nothing to read
# "too_long"     the last rewrite is longer than the model can read again
Ended = Literal["fixed_point", "cycle", "max_rounds", "incomplete", "empty", "too_long"]


class CorrectOptions(WireModel):
    """How far to go.

    ``max_rounds``: rewrites at most, each of the one before it. ``score_after``: score the correction, at the cost
    of one more pass where rewriting did not tell its score. ``edits``: as in ``ScoreOptions``.
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
    """What became of one response.

    ``correction``: the text of the last rewrite; ``edits`` lead there from the response. ``rounds``: rewrites made.
    ``score_before``: of the response, under the bundle's default reading. ``score_after``: of the correction; it is
    there where rewriting told it (always at a fixed point of a finished response) or where it was asked for, and
    absent for a correction that is empty or too long to read. ``truncated``: in some round the oldest part of the
    prompt was cut to fit.
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
        """False where the correction breaks off at its length limit."""
        return self.ended != "incomplete"

    @property
    def is_fixed_point(self) -> bool:
        """Whether the model leaves the correction as it is."""
        return self.ended == "fixed_point"


CorrectionResult = ItemCorrection | ItemError


class CorrectResponse(AnswerModel):
    """Answer to ``POST /v1/correct``, in the order of the request; ``options``: how its scores were read."""

    model: ModelRef
    options: AppliedOptions
    items: Annotated[list[Annotated[CorrectionResult, Field(union_mode="left_to_right")]], FirstError]
    usage: Usage
