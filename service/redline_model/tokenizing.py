"""A tokenizer of a stranger's folder at work: what it raises and how much it answers is bounded by a named error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redline_model.bounded_json import one_line
from redline_model.errors import TokenizerError
from redline_model.panics import PanicError, panics_as_errors

# Bytes become a token each at worst, and a letter is written out in up to 18 others where text is normalised.
TOKENS_PER_CHARACTER = 64
SPARE_TOKENS = 1000


def tokenized(tokenizer: Any, *texts: str, **options: Any) -> Any:
    """``tokenizer(*texts, **options)`` of a text or a pair.

    Raises:
        TokenizerError: it fails on this text, or gives more than 64 tokens for a character and 1000 beyond that.
    """
    try:
        with panics_as_errors("the tokenizer"):
            encoded = tokenizer(*texts, **options)
    except (MemoryError, RecursionError):
        raise
    except PanicError as error:
        raise TokenizerError(str(error)) from error
    except Exception as error:  # a bare Exception from Rust among others
        raise TokenizerError(f"the tokenizer fails on this text: {one_line(error)}") from error
    count, size = len(encoded["input_ids"]), sum(map(len, texts))
    if count > TOKENS_PER_CHARACTER * size + SPARE_TOKENS:
        raise TokenizerError(f"the tokenizer makes {count} tokens of {size} characters")
    return encoded


def decoded(tokenizer: Any, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """The text of ids. Raises TokenizerError where the tokenizer fails on them."""
    try:
        with panics_as_errors("the tokenizer"):
            return str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
    except (MemoryError, RecursionError):
        raise
    except PanicError as error:
        raise TokenizerError(str(error)) from error
    except Exception as error:
        raise TokenizerError(f"the tokenizer fails on these ids: {one_line(error)}") from error
