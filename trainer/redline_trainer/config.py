"""The settings of one training run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from redline_model.kinds import kind_spec
from redline_model.options import Aggregate, Mode

Dropout = Literal["off", "base"]


class TrainConfig(BaseModel):
    """Everything that decides the result of a run, beside the data.

    ``method``: all weights learn (``full``), low-rank adapters (``lora``), or adapters on a 4-bit base (``qlora``).
    ``pairs_per_step``: the batch size of an optimiser step, computed in microbatches of at most ``max_batch_tokens``
    tokens, padding included. ``max_steps`` wins over ``epochs``. ``learning_rate``: its peak; None takes
    ``objectives.factory.default_learning_rate``.
    ``identity_weight`` is ``w_id``. ``mismatch``: responses of other prompts as sources, or as losing sides
    (docs/explanation/method.md); None uses them for seq2seq alone. ``beta``: of ``dpo``, reward per nat. ``odin``: a
    length head beside the quality head, with the weights of its two losses (kinds scalar and red).
    ``smoothing_rate``: how far a pair's label moves to the model's own prediction at each visit, 0 not at all (kinds
    scalar and red).
    ``dropout``: inside the base, ``off`` or as the base's configuration says (``base``); ``lora_dropout``: inside the
    adapters. ``precision``: of the arithmetic; the weights that learn are float32. ``auto`` is bfloat16 on a GPU that
    supports it and on a CPU that was measured to be much faster in it.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["seq2seq", "scalar", "red", "dpo"] = "seq2seq"
    base: str
    out: Path
    method: Literal["full", "lora", "qlora"] = "full"
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    pairs_per_step: int = Field(default=32, ge=1)
    max_batch_tokens: int = Field(default=8192, ge=1)
    max_tokens: int | None = Field(default=None, ge=8)
    on_too_long: Literal["error", "truncate", "skip"] = "error"
    learning_rate: float | None = Field(default=None, gt=0)
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    correction_weight: float = Field(default=1.0, ge=0)
    identity_weight: float = Field(default=1.0, ge=0)
    mismatch: bool | None = None
    beta: float = Field(default=0.1, gt=0)
    odin: bool = False
    odin_length_weight: float = Field(default=1.0, ge=0)
    odin_orthogonality_weight: float = Field(default=1.0, ge=0)
    smoothing_rate: float = Field(default=0.0, ge=0, le=1)
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: float = Field(default=32.0, gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    dropout: Dropout = "off"
    gradient_checkpointing: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    instruction: str | None = None
    mode: Mode = "margin"
    aggregate: Aggregate = "sum"
    held_out_share: float = Field(default=0.1, ge=0, lt=1)
    checkpoint_every: int = Field(default=200, ge=1)
    seed: int = 0
    device: str = "auto"

    @property
    def uses_mismatch(self) -> bool:
        """Whether pairs are given responses of other prompts: as asked, else for seq2seq."""
        return self.kind == "seq2seq" if self.mismatch is None else self.mismatch

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "seq2seq" and self.correction_weight == self.identity_weight == 0 and not self.uses_mismatch:
            raise ValueError("with both mappings' weights at 0 and no mismatch there is nothing to learn")
        if self.uses_mismatch and (self.smoothing_rate or self.kind == "dpo"):
            raise ValueError("mismatch goes with the kinds seq2seq, scalar and red, and not with smoothing_rate")
        if not kind_spec(self.kind).is_classifier and (self.odin or self.smoothing_rate):
            raise ValueError(f"odin and smoothing_rate are options of the kinds scalar and red, not of {self.kind}")
        return self

    def identity(self) -> dict[str, object]:
        """What must be the same for a checkpoint to be resumed: all but where things are written."""
        return self.model_dump(mode="json", exclude={"out", "checkpoint_every"})
