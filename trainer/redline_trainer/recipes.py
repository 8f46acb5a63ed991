"""Which objective a run's settings ask for, and what a kind keeps beside its model."""

from __future__ import annotations

from typing import Any

from redline_model.bundle import REFERENCE
from redline_model.loading import CLASSIFIERS, Placement, load_model
from redline_model.template import Template
from redline_trainer.adapters import inner
from redline_trainer.config import TrainConfig
from redline_trainer.dpo import DPOObjective
from redline_trainer.objectives import Objective, ScalarObjective, Seq2SeqObjective
from redline_trainer.odin import ODINObjective
from redline_trainer.smoothing import SmoothedLabels


def template_for(config: TrainConfig, tokenizer: Any) -> Template:
    """The layout of items: for ``dpo`` the prompts of a policy, for that is what is fitted."""
    if config.kind == "dpo":
        return Template.of_policy(tokenizer)
    return Template.fitting(tokenizer, config.instruction)


def make_objective(config: TrainConfig, model: Any, pairs: int, reference: Any = None) -> Objective[Any]:
    """The objective of a run over ``pairs`` pairs, those left out counted; ``reference``: see ``frozen_reference``."""
    base = inner(model)
    if config.kind == "dpo":
        return DPOObjective(base, config.beta, reference=reference, adapted=None if base is model else model)
    if config.kind in CLASSIFIERS:
        labels = SmoothedLabels(pairs, config.smoothing_rate, base.device) if config.smoothing_rate else None
        if not config.odin:
            return ScalarObjective(base, labels)
        return ODINObjective(
            base,
            length_weight=config.odin_length_weight,
            orthogonality_weight=config.odin_orthogonality_weight,
            labels=labels,
        )
    return Seq2SeqObjective(base, config.identity_weight, config.correction_weight)


def frozen_reference(config: TrainConfig, placement: Placement) -> Any:
    """The base as it stands, in the dtype that the fitted model will be saved in; None where a kind keeps none."""
    if config.kind != "dpo":
        return None
    held = placement.model_copy(update={"dtype": "float32"}) if config.method == "full" else placement
    return load_model(config.base, "dpo", held).requires_grad_(False)


def scorer_options(config: TrainConfig, reference: Any) -> dict[str, Any]:
    """What the kind's scorer asks for beside its model."""
    return {"reference": reference, "beta": config.beta} if config.kind == "dpo" else {}


def bundle_parts(reference: Any) -> dict[str, Any]:
    """The models that are saved beside the fitted one, by sub-folder."""
    return {} if reference is None else {REFERENCE: reference}
