"""The prefix cache is bounded in bytes, and the caches of encoded prompts are bounded in size."""

from __future__ import annotations

import threading
from typing import Any

import torch

from redline_model.bundle.bundle import Bundle
from redline_model.encoding.items import Item
from redline_model.encoding.sized_cache import SizedCache
from redline_model.inference.packed_attention import KVCache
from redline_model.inference.prefix_cache import PrefixCache, share_bytes


def filled_kv_cache(tokens: int, layers: int = 2, heads: int = 2, size: int = 8) -> KVCache:
    kv_cache = KVCache(tokens)
    for layer in range(layers):
        kv_cache.write(layer, 0, torch.zeros(heads, tokens, size), torch.zeros(heads, tokens, size))
    return kv_cache


def test_the_bytes_of_cached_prefixes_are_counted_and_bounded() -> None:
    entry = filled_kv_cache(10)
    assert entry.bytes == 10 * 2 * 2 * 2 * 8 * 4  # tokens, keys and values, layers, heads, size, float32
    cache = PrefixCache(10_000, max_bytes=3 * entry.bytes)
    for n in range(5):
        cache.put((n,) * 10, filled_kv_cache(10))
        assert cache.bytes <= cache.max_bytes
    assert [(n,) * 10 in cache for n in range(5)] == [False, False, True, True, True]
    assert cache.tokens == 30
    assert not cache.has_room_for((9,) * 31)
    cache.clear()
    assert cache.bytes == cache.tokens == 0
    assert (4,) * 10 not in cache


def test_the_caches_of_a_bundle_share_one_memory_limit() -> None:
    caches = [PrefixCache(100), PrefixCache(100)]
    share_bytes(caches, 1000)
    assert [cache.max_bytes for cache in caches] == [500, 500]
    share_bytes([], 1000)


def test_a_loaded_bundle_keeps_its_prefix_cache_limit(bundle: Bundle) -> None:
    loaded = Bundle.load(bundle.folder, prefix_cache_tokens=10_000, prefix_cache_bytes=60_000)
    scorer: Any = loaded.scorer
    for n in range(12):
        scorer.forward([scorer.encoder.encode(Item(f"Prompt number {n}, of several words", "So."))])
    [cache] = scorer.planner.prefix_caches
    assert 0 < cache.bytes <= 60_000
    without_cache = Bundle.load(bundle.folder, prefix_cache_tokens=10_000, prefix_cache_bytes=0)
    without_cache.scorer.forward([scorer.encoder.encode(Item("Prompt", "So."))])
    assert sum(cache.bytes for cache in without_cache.scorer.planner.prefix_caches) == 0


def test_a_sized_cache_evicts_the_least_recently_used_entry_and_keeps_its_size() -> None:
    computed: list[str] = []

    def compute(key: str) -> str:
        computed.append(key)
        return key * 2

    cache = SizedCache(compute, lambda key, value: len(value), 10)
    assert [cache(key) for key in ("a", "bb", "a", "cc", "bb", "ddddd", "eeeeee")] == [
        *("aa", "bbbb", "aa", "cccc", "bbbb", "dddddddddd", "eeeeeeeeeeee")
    ]
    assert computed == ["a", "bb", "cc", "ddddd", "eeeeee"]
    assert cache.size <= 10
    assert cache("bb") == "bbbb"
    assert computed[-1] == "bb"


def test_a_sized_cache_is_thread_safe() -> None:
    cache = SizedCache(lambda key: (key,) * 3, lambda key, value: 3, 30)
    wrong: list[int] = []

    def use(seed: int) -> None:
        for n in range(2000):
            key = (n * seed) % 37
            if cache(key) != (key,) * 3:
                wrong.append(key)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.size <= 30
