"""The errors of the model package (redline_model).

RedlineModelError
├── BundleError           a folder is not a complete, intact bundle
├── UnsupportedError      the model, mode or option does not support the request
├── PanicError            a Rust library crashed (redline_model.untrusted.panics)
├── DataError             preference data cannot be read (raised by the trainer)
└── ItemError             one (prompt, response) cannot be scored; others can
    ├── InvalidPromptError
    ├── EmptyResponseError
    ├── BadIdsError
    ├── TooLongError
    ├── TokenizerError
    ├── NonFiniteError
    └── OutOfMemoryError
"""

from __future__ import annotations


class RedlineModelError(Exception):
    """Base of the model package's errors; the message can be shown to a user."""


class BundleError(RedlineModelError):
    """A bundle is missing, half-written or corrupt; the message names the file."""


class UnsupportedError(RedlineModelError):
    """The model, mode or option does not support the request."""


class DataError(RedlineModelError):
    """Preference data cannot be used; the message lists file, line and reason for every bad line."""


class ItemError(RedlineModelError):
    """One item cannot be scored."""


class InvalidPromptError(ItemError):
    """The conversation does not fit the model's chat template."""


class EmptyResponseError(ItemError):
    """The response has no token to score."""


class BadIdsError(ItemError):
    """Token ids outside the vocabulary, or an end token in the middle."""


class TooLongError(ItemError):
    """The item needs more tokens than the model reads."""


class TokenizerError(ItemError):
    """The model's tokenizer fails on the item's text or ids, or makes far too many tokens of the text."""


class NonFiniteError(ItemError):
    """The model's output has NaN or infinity."""


class OutOfMemoryError(ItemError):
    """The item does not fit into memory, even as the only one in a batch."""
