"""Fingerprint of a tokenizer, and the check that a model has an embedding for each of its tokens."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from redline_model.errors import UnsupportedError


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """``sha256:...`` over the vocabulary as sorted (token, id) pairs and the end token's id."""
    description = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id], ensure_ascii=True)
    return "sha256:" + hashlib.sha256(description.encode()).hexdigest()


def check_tokenizer_size(tokenizer: Any, config: Any) -> None:
    """Raise UnsupportedError if the tokenizer has ids that the model's embedding does not have."""
    ids = dict(tokenizer.get_vocab())
    # a tokenizer class of transformers may add its default unknown token although the files have none; a byte-level
    # tokenizer never produces it
    unknown, model = tokenizer.unk_token, getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if unknown not in {getattr(model, "unk_token", None), tokenizer.eos_token, tokenizer.bos_token}:
        ids.pop(unknown, None)
    tokens = max(ids.values(), default=-1) + 1
    size = getattr(config.get_text_config(), "vocab_size", None)
    if isinstance(size, int) and tokens > size:
        raise UnsupportedError(
            f"the tokenizer has {tokens} tokens and the model's embedding {size}: the model was not made larger when "
            "tokens were added (resize_token_embeddings)"
        )
