from __future__ import annotations

import copy
import pickle

import torch

from detectors.size_cache import SizeCache


def test_makes_each_entry_once() -> None:
    cache, made = SizeCache(), []
    for key in (1, 2, 1, 1):
        assert cache.get(key, lambda key=key: made.append(key) or 10 * key) == 10 * key
    assert made == [1, 2]


def test_forgets_the_oldest() -> None:
    cache = SizeCache(capacity=2)
    for key in range(5):
        cache.get(key, lambda: key)  # noqa: B023
    assert len(cache) == 2
    assert cache.get(4, lambda: -1) == 4
    assert cache.get(0, lambda: -1) == -1


def test_copies_and_pickles_start_empty() -> None:
    cache = SizeCache(capacity=3)
    cache.get("key", lambda: 1)
    for other in (copy.copy(cache), copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert len(other) == 0
        assert other.capacity == 3


def test_entries_made_in_inference_mode_serve_training() -> None:
    cache = SizeCache()
    with torch.inference_mode():
        cache.get("ones", lambda: torch.ones(2))
    weight = torch.ones(2, requires_grad=True)
    (weight * cache.get("ones", lambda: torch.zeros(2))).sum().backward()
    assert weight.grad is not None
