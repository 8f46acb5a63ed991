"""The kinds of reward models: one module in ``redline_model.scorers`` per kind, each with a ``KIND``.

A kind's name is its module's name, so the names are known without importing any model code. Add a module to add a kind.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from redline_model.errors import UnsupportedError
from redline_model.options import Aggregate, Extraction, Template

if TYPE_CHECKING:  # kinds are known without torch
    from redline_model.encoding.encoder import Encoder
    from redline_model.scorer import Scorer

_SCORERS = "redline_model.scorers"  # by name, because each of its modules imports this one
# The type of a kind's transformers model: a causal or encoder-decoder language model, a causal language model only, or
# a sequence classifier with one label.
Architecture = Literal["language_model", "causal_lm", "classifier"]


class BundleReader(Protocol):
    """Gives a kind access to the bundle that it is loaded from."""

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        ...

    @property
    def kind(self) -> str:
        """The bundle's kind."""
        ...

    @property
    def extraction(self) -> Extraction:
        """The bundle's default rewards."""
        ...

    @property
    def template(self) -> Template:
        """How the bundle lays out its items."""
        ...

    @property
    def kind_options(self) -> Any:
        """The value of the manifest's field that only this kind has; None if it has none."""
        ...

    @property
    def prefix_cache_tokens(self) -> int:
        """Tokens of prompts whose keys and values each model keeps between passes."""
        ...

    def model(self, subfolder: str = "") -> Any:
        """The transformers model in the bundle, or in a sub-folder of it."""
        ...

    def encoder(self, model: Any) -> Encoder:
        """The encoder of items for ``model``."""
        ...

    def inner_bundle(self, subfolder: str) -> Scorer[Any]:
        """The scorer of a bundle in a sub-folder."""
        ...


@dataclass(frozen=True)
class KindSpec:
    """Everything that distinguishes one kind of reward model from the others.

    Args:
        description: one or two sentences for the model card.
        architecture: of the weights; None if all weights are in nested bundles.
        make_scorer: from ``(model, encoder, extraction, *, prefix_cache_tokens, ...)`` to a scorer; None for a kind
            that is derived from other bundles.
        load: from a bundle to a scorer; by default ``make_scorer`` with the bundle's model.
        contents: describes the bundle's folder in the model card.
        mode: the default mode in the model card, a format string with the fields of the manifest's ``extraction``.
        supports_conversation_style: whether the model may read the response with the end of turn of its own chat
            template (template style ``conversation``).
        reads_as_policy: whether prompts are laid out as a policy reads them (template style ``policy``).
        aggregate: the default aggregate of a new bundle.
    """

    description: str
    architecture: Architecture | None = None
    make_scorer: Callable[..., Scorer[Any]] | None = None
    load: Callable[[BundleReader], Scorer[Any]] | None = None
    contents: str = "The folder is an ordinary transformers model;"
    mode: str = "none"
    supports_conversation_style: bool = False
    reads_as_policy: bool = False
    aggregate: Aggregate = "sum"

    @property
    def is_decoder_only(self) -> bool:
        """Whether encoder-decoder models are refused."""
        return self.architecture in {"causal_lm", "classifier"}

    @property
    def is_classifier(self) -> bool:
        """Whether the weights are a sequence classifier's."""
        return self.architecture == "classifier"


@cache
def kind_names() -> tuple[str, ...]:
    """The names of all kinds, sorted. Imports none of them."""
    modules = pkgutil.iter_modules(import_module(_SCORERS).__path__)
    return tuple(sorted(module.name for module in modules if not module.name.startswith("_")))


def checked_kind(name: str) -> str:
    """``name`` if there is such a kind. Raises ValueError, which lists the kinds."""
    if name not in kind_names():
        raise ValueError(f"there is no kind {name!r}; there are {', '.join(kind_names())}")
    return name


def kind_spec(name: str) -> KindSpec:
    """The specification of the kind ``name``; imports its scorer. Raises UnsupportedError."""
    try:
        module = import_module(f"{_SCORERS}.{checked_kind(name)}")
    except ValueError as error:
        raise UnsupportedError(str(error)) from error
    spec: KindSpec = module.KIND
    return spec


def load_scorer(reader: BundleReader) -> Scorer[Any]:
    """The scorer of a bundle."""
    spec = kind_spec(reader.kind)
    if spec.load is not None:
        return spec.load(reader)
    model = reader.model()
    return make_scorer(
        reader.kind,
        model,
        reader.encoder(model),
        reader.extraction,
        prefix_cache_tokens=reader.prefix_cache_tokens,
    )


def make_scorer(kind: str, model: Any, encoder: Encoder, extraction: Any, **options: Any) -> Scorer[Any]:
    """The scorer of a kind that has its own model. Raises UnsupportedError for any other kind.

    Args:
        extraction: the bundle's ``Extraction``.
        options: ``prefix_cache_tokens``, and the arguments of the kind's own scorer.
    """
    make = kind_spec(kind).make_scorer
    if make is None:
        raise UnsupportedError(f"a {kind} bundle is derived from other bundles; it has no model of its own")
    return make(model, encoder, extraction, **options)
