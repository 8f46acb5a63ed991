"""Creates the objective, template, reference model and default learning rate of a run from its settings."""

from __future__ import annotations

import math
from typing import Any

from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import load_model
from redline_model.kinds import kind_spec
from redline_model.options import Template
from redline_model.scorers.dpo import REFERENCE
from redline_trainer.adapters import unwrapped
from redline_trainer.config import TrainConfig
from redline_trainer.objectives.base import Objective
from redline_trainer.objectives.bradley_terry import ScalarObjective
from redline_trainer.objectives.dpo import DPOObjective
from redline_trainer.objectives.label_smoothing import SmoothedLabels
from redline_trainer.objectives.odin import ODINObjective
from redline_trainer.objectives.qrm import QRMObjective
from redline_trainer.objectives.seq2seq import Seq2SeqObjective
from redline_trainer.objectives.sft import SFTObjective


def default_learning_rate(config: TrainConfig, parameters: int) -> float:
    """The default peak of the learning rate for a base with this number of parameters.

    The values are from publications, for pretrained bases. Tiny models need a higher rate, set with ``learning_rate``.

    - seq2seq, sft: 2e-5, as for supervised fine-tuning (Alpaca; Zephyr, arXiv 2310.16944).
    - scalar, red, qrm: 1e-5 (Llama 2's reward models, arXiv 2307.09288, 5e-6 at 70B; InstructGPT's 9e-6, arXiv
      2203.02155).
    - dpo: 1e-6 (arXiv 2305.18290, appendix B, at 2.8B and below). **Ours**: below 1e9 parameters it grows with the
      inverse root of the size, up to 1e-5; it is 2.7e-6 at 135M. Published runs at 7B and above use less (5e-7:
      Zephyr); set ``learning_rate`` for such models.

    With adapters it is ten times as high (QLoRA, arXiv 2305.14314: 2e-4 for supervised fine-tuning at 7B and 13B;
    Zephyr's DPO recipes use ten times the rate with adapters).
    """
    rate: float
    if config.kind == "dpo":
        rate = 1e-6 * min(10.0, max(1.0, math.sqrt(1e9 / max(1, parameters))))
    else:
        rate = 1e-5 if kind_spec(config.kind).is_classifier or config.kind == "qrm" else 2e-5
    return rate if config.method == "full" else 10 * rate


def template_for(config: TrainConfig, tokenizer: Any) -> Template:
    """The template of the model's input. It is that of a policy's prompts if a policy is trained."""
    if kind_spec(config.kind).reads_as_policy:
        return Template.of_policy(tokenizer)
    return Template.fitting(tokenizer, config.instruction)


def make_objective(config: TrainConfig, model: Any, pairs: int, reference: Any = None) -> Objective[Any]:
    """The objective of a run over ``pairs`` pairs, including skipped ones. ``reference``: see ``frozen_reference``."""
    base = unwrapped(model)
    if config.kind == "dpo":
        return DPOObjective(base, config.beta, reference=reference, adapted=None if base is model else model)
    if kind_spec(config.kind).is_classifier:
        labels = SmoothedLabels(pairs, config.smoothing_rate, base.device) if config.smoothing_rate else None
        if not config.odin:
            return ScalarObjective(base, labels)
        return ODINObjective(
            base,
            length_weight=config.odin_length_weight,
            orthogonality_weight=config.odin_orthogonality_weight,
            labels=labels,
        )
    if config.kind == "sft":
        return SFTObjective(base)
    if config.kind == "qrm":
        return QRMObjective(base)
    return Seq2SeqObjective(
        base, config.identity_weight, config.correction_weight, config.sft_weight, config.edit_weight
    )


def frozen_reference(config: TrainConfig, load_options: LoadOptions) -> Any:
    """The untrained base in the dtype in which the trained model will be saved; None for kinds without a reference."""
    if config.kind != "dpo":
        return None
    reference_options = (
        load_options.model_copy(update={"dtype": "float32"}) if config.method == "full" else load_options
    )
    return load_model(config.base, "dpo", reference_options).requires_grad_(False)


def scorer_options(config: TrainConfig, reference: Any) -> dict[str, Any]:
    """Additional arguments of the kind's scorer."""
    return {"reference": reference, "beta": config.beta} if config.kind == "dpo" else {}


def bundle_parts(reference: Any) -> dict[str, Any]:
    """Further models of the bundle, by their sub-folder."""
    return {} if reference is None else {REFERENCE: reference}
