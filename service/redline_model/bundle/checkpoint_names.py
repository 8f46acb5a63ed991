"""Check that a checkpoint has the tensors of the model that it is loaded into, by name and shape.

transformers initialises missing tensors at random and ignores additional ones. Redline refuses the first and names the
second in a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from redline_model.errors import BundleError
from redline_model.untrusted.bounded_json import one_line
from redline_model.untrusted.pickle_check import PICKLED, checkpoint_tensors

logger = logging.getLogger(__name__)

_MAX_SHOWN = 3
# Tensors that may be left unused: tables that are computed again, and masks.
_IGNORED = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|inv_freq|position_ids|masked_bias|attn\.bias|attention\.bias|final_logits_bias)$"
)
_LANGUAGE_HEADS = re.compile(r"(lm_head|embed_out)\.")
_CLASSIFIER_HEADS = re.compile(r"(score|classifier|classification_head)\.")


def check_tensor_names(
    loading_info: Mapping[str, Any],
    source: str | Path,
    what: str,
    *,
    is_classifier: bool = False,
    new_head: str | None = None,
    must_warn: bool = True,
) -> None:
    """Refuse a model whose checkpoint does not match it.

    Args:
        loading_info: from transformers: ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys``.
        what: kind of the model, for the message.
        is_classifier: whether the model has a classifier head; an unused language model head is then not reported,
            and the other way round.
        new_head: a module that may be missing because it will be trained; None if nothing may be missing.
        must_warn: log the names of tensors that the model does not use.

    Raises:
        BundleError: tensors are missing or have other shapes; the message has the first names and the number.
    """
    mismatched = sorted(loading_info["mismatched_keys"])
    if mismatched:
        name, stored, expected = mismatched[0]
        rest = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
        raise BundleError(
            f"{source}: the weights have other shapes than the configuration describes: "
            f"{one_line(name)} is {_shape(stored)} and should be {_shape(expected)}{rest}"
        )
    missing = sorted(
        name for name in loading_info["missing_keys"] if new_head is None or not name.startswith(f"{new_head}.")
    )
    if missing:
        raise BundleError(f"{source} lacks weights of a {what} model: {_name_list(missing)}")
    other_heads = _LANGUAGE_HEADS if is_classifier else _CLASSIFIER_HEADS
    unexpected = sorted(
        name for name in loading_info["unexpected_keys"] if not _IGNORED.search(name) and not other_heads.match(name)
    )
    if unexpected and must_warn:
        logger.warning("%s holds weights that a %s model does not use: %s", source, what, _name_list(unexpected))


def loading_info_without_weights(folder: Path, config: Any, model_class: type) -> dict[str, Any] | None:
    """The loading information of transformers for a folder's checkpoint, from names and shapes alone.

    Args:
        model_class: a class of transformers, not one of its ``Auto`` classes.

    Returns:
        See ``loading_info`` of ``check_tensor_names``. None if it is unknown: quantised weights, or no accelerate.

    Raises:
        BundleError: there are no weights, or they are damaged.
    """
    if getattr(config, "quantization_config", None) is not None or find_spec("accelerate") is None:
        return None
    with quiet_transformers():
        _, loading_info = model_class.from_pretrained(  # type: ignore[attr-defined]
            None,
            trust_remote_code=False,
            config=config,
            state_dict=_empty_tensors(folder),
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    return dict(loading_info)


def _empty_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors without their data."""
    stored = checkpoint_tensors(folder)
    if stored is None:
        raise BundleError(f"{folder} holds no weights: there is no {PICKLED}")
    return {name: torch.empty(tensor.shape, device="meta") for name, tensor in stored.items()}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch off transformers' loading report and progress bars; this module reports problems in one line instead."""
    from transformers.utils import logging as transformers_logging

    report = logging.getLogger("transformers.modeling_utils")
    level, has_bars = report.level, transformers_logging.is_progress_bar_enabled()
    report.setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        report.setLevel(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


def _name_list(names: list[str]) -> str:
    shown = ", ".join(one_line(name) for name in names[:_MAX_SHOWN])
    return shown if len(names) <= _MAX_SHOWN else f"{shown} ... ({len(names)} tensors)"


def _shape(sizes: Any) -> str:
    return "x".join(str(int(size)) for size in sizes) or "a scalar"
