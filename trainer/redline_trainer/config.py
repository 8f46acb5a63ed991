"""Settings of a training run (``TrainConfig``)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from redline_model.kinds import kind_spec
from redline_model.options import STATISTICS_MODES, Aggregate, Mode

Dropout = Literal["off", "base"]


class TrainConfig(BaseModel):
    """Settings of a training run, apart from its data.

    Model:
        ``kind``: of reward model.
        ``base``: folder or hub id of the model that is trained.
        ``out``: folder of the bundle that is written.
        ``method``: ``full`` trains all weights, ``lora`` low-rank adapters, ``qlora`` adapters on a 4-bit base.
        ``lora_rank``, ``lora_alpha``: of the adapters.
        ``instruction``: request for a rewrite in the template of seq2seq models; None for the default.
        ``mode``: mode of the bundle's token rewards (seq2seq, sft), see docs/decisions/0017.
        ``aggregate``: default aggregate of the bundle; None for that of the kind: ``mean`` for seq2seq, sft and qrm,
        ``sum`` for others.
        ``score_mode``: the mode of its score; None for ``mode``.
    Steps:
        ``epochs``: passes over the training pairs.
        ``max_steps``: number of optimiser steps; it overrides ``epochs``.
        ``pairs_per_step``: batch size of an optimiser step.
        ``max_batch_tokens``: token limit of one forward pass, including padding. A step is split into several passes.
        ``learning_rate``: its peak; None for ``objectives.factory.default_learning_rate``.
        ``warmup_share``: share of the steps in which the learning rate rises to its peak.
        ``weight_decay``, ``max_grad_norm``: of the optimiser.
        ``checkpoint_every``: steps between checkpoints.
        ``seed``: of data order, mismatched responses, adapters and dropout.
    Data:
        ``max_tokens``: token limit of a sequence; None for the base's limit.
        ``on_too_long``: what happens to pairs that are too long: ``error``, ``truncate`` the prompt, or ``skip``.
        ``held_out_share``: share of the prompts that is kept for evaluation and calibration.
    Objective:
        ``correction_weight``, ``identity_weight`` (``w_id``): weights of the mappings of seq2seq.
        ``sft_weight``: weight of ``log pi(y_w | x)``, the response not in the context (seq2seq). Above 0, the bundle
        offers the modes ``sft_logprob`` and ``sft_margin``. Encoder-decoder models cannot be read so.
        ``edit_weight``: weight of target tokens that the source does not have; copies have weight 1 (seq2seq).
        ``omission``: adds chosen responses without their end as sources (seq2seq).
        ``mismatch``: adds responses to other prompts, as sources (seq2seq) or as rejected responses (scalar, red,
        qrm), see docs/explanation/method.md.
        ``beta``: of dpo, reward per nat.
        ``odin``: trains a length head together with the quality head (scalar, red).
        ``odin_length_weight``, ``odin_orthogonality_weight``: weights of the two losses of ODIN.
        ``smoothing_rate``: how far a pair's label moves to the model's prediction at each visit; 0 for hard labels
        (scalar, red).
    Computation:
        ``dropout``: inside the base, ``off``, or ``base`` for the rates of the base's configuration.
        ``lora_dropout``: inside the adapters.
        ``gradient_checkpointing``: computes activations again in the backward pass to save memory.
        ``precision``: of the arithmetic; trained weights are always float32. ``auto`` is bfloat16 on a GPU that
        supports it, and on a CPU on which a measurement shows that it is much faster.
        ``device``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["seq2seq", "sft", "scalar", "red", "dpo", "qrm"] = "seq2seq"
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
    sft_weight: float = Field(default=0.0, ge=0)
    edit_weight: float = Field(default=1.0, gt=0)
    omission: bool = False
    mismatch: bool = False
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
    mode: Mode = "logprob"
    score_mode: Mode | None = None
    aggregate: Aggregate | None = None
    held_out_share: float = Field(default=0.1, ge=0, lt=1)
    checkpoint_every: int = Field(default=200, ge=1)
    seed: int = 0
    device: str = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        weights = (self.correction_weight, self.identity_weight, self.sft_weight)
        if self.kind == "seq2seq" and not any(weights) and not self.mismatch:
            raise ValueError(
                "there is nothing to learn: correction_weight, identity_weight and sft_weight are 0, mismatch is off"
            )
        if not kind_spec(self.kind).is_classifier and (self.odin or self.smoothing_rate):
            raise ValueError(f"odin and smoothing_rate are options of the kinds scalar and red, not of {self.kind}")
        if self.mismatch and (self.smoothing_rate or self.kind in {"dpo", "sft"}):
            raise ValueError(
                "mismatch is an option of the kinds seq2seq, scalar, red and qrm, and cannot be combined with "
                "smoothing_rate"
            )
        if self.kind == "sft" and not {self.mode, self.score_mode or self.mode} <= set(STATISTICS_MODES):
            raise ValueError(f"the modes of the kind sft are {', '.join(STATISTICS_MODES)}")
        return self

    def identity(self) -> dict[str, object]:
        """Settings that must be equal to resume a checkpoint: all except ``out`` and ``checkpoint_every``."""
        return self.model_dump(mode="json", exclude={"out", "checkpoint_every"})
