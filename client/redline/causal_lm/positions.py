"""How many tokens a model can read: the positions that its configuration names, under whichever field name."""

from __future__ import annotations

from typing import Any

# What a model without a table of positions reads unless another limit is asked for.
DEFAULT_TOKENS = 4096

# Fields that hold a number of positions, the first that does is taken.
_ANY = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
_SOURCE = ("max_encoder_position_embeddings", "max_source_positions", *_ANY)
_TARGET = ("max_decoder_position_embeddings", "max_target_positions", *_ANY)
# Relative positions or distances alone; what their configurations say of positions is no limit.
_UNLIMITED = {"t5", "mt5", "umt5", "longt5", "switch_transformers", "bloom", "xlnet", "transfo-xl"}
# Positions are counted from behind the padding token's id, and the table holds those before it, too.
_COUNTED_FROM_PADDING = {
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "data2vec-text"),
    *("longformer", "mpnet", "ibert", "luke", "esm", "markuplm", "lilt"),
}


def source_positions(config: Any) -> int | None:
    """Positions of the sequence that the model reads: the encoder's, or the only ones. None: there is no limit."""
    if config.is_encoder_decoder:
        return _positions(_part(config, "encoder"), _SOURCE)
    return _positions(config.get_text_config(), _ANY)


def target_positions(config: Any) -> int | None:
    """Positions of an encoder-decoder model's decoder. None: there is no limit."""
    return _positions(_part(config, "decoder"), _TARGET)


def token_limit(config: Any, asked: int | None = None) -> int:
    """The longest sequence to read: the configuration's positions, or ``asked`` if that is less.

    Models without a limit of their own read 4096 unless asked otherwise.
    """
    positions = source_positions(config)
    return min(positions or asked or DEFAULT_TOKENS, asked or positions or DEFAULT_TOKENS)


def _part(config: Any, name: str) -> Any:
    """The configuration of an encoder or a decoder; most models have one configuration for both."""
    part = getattr(config, name, None)
    return config if part is None or not hasattr(part, "get_text_config") else part.get_text_config()


def _positions(config: Any, fields: tuple[str, ...]) -> int | None:
    if config.model_type in _UNLIMITED:
        return None
    for name in fields:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:  # some say -1 for none
            if config.model_type in _COUNTED_FROM_PADDING:
                value -= (getattr(config, "pad_token_id", None) or 0) + 1
            return max(1, value)
    return None
