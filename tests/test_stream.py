"""Batches, look-ahead and windows."""

from __future__ import annotations

import itertools
import threading

import pytest

from flashlips_core.stream import batched, counted, prefetch


def test_items_are_shown_and_counted_once_the_consumer_is_done_with_them():
    seen, steps = [], []
    stream = counted("abc", 2, lambda *step: steps.append(step), seen.append)
    assert next(stream) == "a" and not seen and not steps
    assert list(stream) == ["b", "c"]
    assert seen == ["a", "b", "c"] and steps == [(1, 2), (2, 2), (2, 2)]  # a container's count may be too low


def test_batches_joined_are_the_stream():
    batches = list(batched(iter(range(10)), 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert list(itertools.chain(*batches)) == list(range(10))


def test_an_empty_stream_has_no_batch():
    assert list(batched([], 3)) == []


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        list(batched([1], 0))


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_prefetched_is_the_same_stream(depth):
    assert list(prefetch(iter(range(50)), depth)) == list(range(50))


def test_prefetch_runs_no_further_ahead_than_its_depth():
    made = []
    stream = prefetch((made.append(i) or i for i in range(1000)), depth=3)
    for wanted in range(5):
        assert next(stream) == wanted
    assert len(made) <= 5 + 3 + 1  # taken, queued, and one that waits for room
    stream.close()
    assert len(made) < 20


def test_an_error_arrives_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise RuntimeError("the disk is gone")

    got = []
    with pytest.raises(RuntimeError, match="the disk is gone"):
        for item in prefetch(source(), depth=4):
            got.append(item)
    assert got == [1, 2]


def test_a_keyboard_interrupt_in_the_source_reaches_the_consumer():
    def source():
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(prefetch(source()))


def test_a_consumer_that_stops_early_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def source():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    stream = prefetch(source(), depth=2)
    assert next(stream) == 0
    stream.close()
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "flashlips-prefetch"]


def test_prefetches_can_be_chained_and_stopped_together():
    stream = prefetch(prefetch(itertools.count(), 2), 2)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "flashlips-prefetch"]
