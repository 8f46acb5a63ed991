"""The options in a bundle's manifest: modes, aggregates, template and others. Imports no torch."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from redline.chat_template import POLICY_SETTINGS

Mode = Literal[
    "paper",
    "paper_centered",
    "margin",
    "logprob",
    "logprob_centered",
    "probability",
    "edits",
    "sft_logprob",
    "sft_margin",
]
Aggregate = Literal["sum", "mean", "last"]
Combine = Literal["mean", "min", "mean_minus_variance"]
MODES: tuple[Mode, ...] = get_args(Mode)
# modes that need the model's correction of the response
CORRECTION_MODES: tuple[Mode, ...] = ("edits",)
# modes that read the pass in which the response is not in the context
SFT_MODES: tuple[Mode, ...] = ("sft_logprob", "sft_margin")
# modes that are functions of the statistics of one pass
STATISTICS_MODES: tuple[Mode, ...] = tuple(mode for mode in MODES if mode not in {*CORRECTION_MODES, *SFT_MODES})
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)


class Extraction(BaseModel):
    """How a bundle turns model outputs into rewards: the defaults, and the parameters of each mode (all **ours**).

    ``positive``/``negative``: reward of an agreeing token before k, penalty of a diverging one (mode ``paper``).
    ``after_divergence``: reward of a token that agrees again after k (mode ``paper``).
    ``margin_floor``: lowest reward of a token in modes ``margin`` and ``sft_margin``, nats.
    ``logprob_floor``: lowest reward of a token in modes ``logprob`` and ``sft_logprob``, nats.
    ``edits_logprob_weight``: reward per nat of ``log pi(y_t)`` in mode ``edits``.
    ``probability_clip``: mode ``probability``.
    ``score_mode``: the mode of the score; None for ``mode``.
    ``has_sft``: whether the model was also fitted to write without the response in its context, so that it offers the
    modes ``sft_logprob`` and ``sft_margin``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Mode = "logprob"
    aggregate: Aggregate = "sum"
    positive: float = 1.0
    negative: float = 1.0
    after_divergence: float = 0.0
    margin_floor: float = -10.0
    logprob_floor: float = -10.0
    edits_logprob_weight: float = 0.1
    probability_clip: tuple[float, float] = (-0.5, 0.5)
    score_mode: Mode | None = None
    has_sft: bool = False

    @model_validator(mode="after")
    def _offers_its_modes(self) -> Self:
        if not self.has_sft and {self.mode, self.score_mode} & set(SFT_MODES):
            raise ValueError(f"the modes {', '.join(SFT_MODES)} need a model that was fitted with sft_weight above 0")
        return self

    def without_corrections(self) -> Extraction:
        """These settings for a scorer that cannot write corrections: ``logprob`` in place of modes that need one."""
        modes = {name: "logprob" for name in ("mode", "score_mode") if getattr(self, name) in CORRECTION_MODES}
        return self.model_copy(update=modes)


class Template(BaseModel):
    """How a conversation, a response and the instruction to rewrite it are laid out as one sequence.

    ``style``: ``chat`` uses the tokenizer's chat template: the conversation, the response as the assistant's turn,
    ``instruction`` as the user's next turn. ``plain`` uses the markers below. ``conversation``: the chat template
    without an instruction (``redline_model.encoding.conversation_encoder``). ``policy``: the prompt as a policy reads
    it (``redline.chat_template.PolicyPrompts``).
    ``chat_kwargs`` are passed to the chat template. Their ``date_string`` is also the date that a template gets instead
    of today's, so that renderings do not change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    style: Literal["chat", "plain", "conversation", "policy"]
    instruction: str = "Rewrite your answer so that it is the best possible answer. Reply with the answer alone."
    turn: str = "{role}:\n"
    turn_end: str = "\n\n"
    rewrite: str = "Better answer:\n"
    chat_kwargs: dict[str, Any] = {"date_string": "01 Jan 2025", "enable_thinking": False}

    @classmethod
    def of_policy(cls, tokenizer: Any = None) -> Template:
        """The prompt of a policy: the chat template without settings, or the plain text of the prompt."""
        return cls(style="policy", chat_kwargs=dict(POLICY_SETTINGS))

    @classmethod
    def fitting(cls, tokenizer: Any, instruction: str | None = None) -> Template:
        """``chat`` if the tokenizer has a chat template, else ``plain``."""
        chosen = cls(style="chat" if getattr(tokenizer, "chat_template", None) else "plain")
        return chosen if instruction is None else chosen.model_copy(update={"instruction": instruction})


class EnsembleOptions(BaseModel):
    """How many members an ensemble has and how their scores are combined. ``variance_weight`` is lambda, in 1/score."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    members: int = Field(ge=2)
    combine: Combine = "mean"
    variance_weight: float = Field(default=1.0, ge=0)


class LengthCurve(BaseModel):
    """Expected score by length in response tokens: linear between the knots, constant outside of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lengths: list[float] = Field(min_length=1)
    values: list[float] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.lengths) != len(self.values):
            raise ValueError(f"{len(self.lengths)} lengths and {len(self.values)} values")
        if any(a >= b for a, b in pairwise(self.lengths)):
            raise ValueError("the lengths do not increase")
        return self

    def at(self, length: float) -> float:
        """The expected score of a response of ``length`` tokens."""
        right = bisect_right(self.lengths, length)
        if right == 0 or right == len(self.lengths):
            return self.values[0 if right == 0 else -1]
        start, end = self.lengths[right - 1], self.lengths[right]
        share = (length - start) / (end - start)
        return (1 - share) * self.values[right - 1] + share * self.values[right]


class LengthCalibration(BaseModel):
    """One curve per reward specification ``mode/aggregate`` of the inner model, and how they were fitted.

    ``fraction``: share of the reference set in each local regression. ``responses``: how many were scored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fraction: float = Field(gt=0, le=1)
    responses: int = Field(ge=1)
    curves: dict[str, LengthCurve]
