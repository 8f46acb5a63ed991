"""Small tokenizers of common families, trained on the spot, with the conventions in which these families differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tests.conftest import TEXTS, build_tokenizer

_CORPUS = [
    *TEXTS,
    "It's 1,024 don'ts: naïve façade; ﬁne print, e.g. ½ of N° 12345.",
    "日本語と한국어, и русский текст.",
    "\n\n  - a\tb\n",
] * 3
_END = "</s>"


def _wrapped(tokenizer: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = {"eos_token": _END, "pad_token": "<pad>", "unk_token": "<unk>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _byte_bpe_prefix_space() -> Any:
    """As RoBERTa: a space is added before the text, and offsets are without white space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<pad>", "<unk>", _END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return _wrapped(tokenizer)


def _unigram() -> Any:
    """As T5: normalised text (NFKC), white space as a character of its own, unknown characters in one token."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "<unk>", _END], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return _wrapped(tokenizer)


def _byte_fallback() -> Any:
    """As Llama 2: white space as a character of its own, unknown characters as byte tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<pad>", "<unk>", _END, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, limit_alphabet=60, max_token_length=8, show_progress=False
    )
    tokenizer.train_from_iterator([text.replace(" ", "▁") for text in _CORPUS], trainer)
    # trained as special tokens so that they exist; byte tokens are ordinary tokens
    import json

    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return _wrapped(Tokenizer.from_str(json.dumps(state)))


def _word_piece() -> Any:
    """As BERT: lower case, no accents, punctuation split off, spaces added again when decoding."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["<pad>", "<unk>", _END], show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return _wrapped(tokenizer)


def _first_space() -> Any:
    """As Llama in transformers 5: a space symbol before the first word of a text, none after a special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<unk>", _END], max_token_length=8, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return _wrapped(tokenizer)


_BUILDERS: dict[str, Callable[[], Any]] = {
    "byte_bpe": build_tokenizer,
    "byte_bpe_prefix_space": _byte_bpe_prefix_space,
    "unigram": _unigram,
    "byte_fallback": _byte_fallback,
    "first_space": _first_space,
    "word_piece": _word_piece,
}
TOKENIZERS = sorted(_BUILDERS)


@cache
def tokenizer_of(family: str) -> Any:
    """The family's tokenizer, trained once per process."""
    return _BUILDERS[family]()
