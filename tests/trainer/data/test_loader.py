from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch

from trainer.data.loader import Loader, Mixture


@dataclass(frozen=True)
class Numbered:
    """A batch that tells which one it is."""

    number: int
    mask: torch.Tensor


class Counting:
    """Batches that come later the lower their index, so that threads finish out of order."""

    num_batches = 7

    def __init__(self, source: int) -> None:
        self._source = source

    def parts(self, index: int) -> list[Numbered]:
        time.sleep(0.002 * (index % 3 == 0))
        return [Numbered(100 * self._source + index, torch.ones(1, 2 + i, dtype=torch.bool)) for i in range(2)]

    def describe(self, index: int) -> str:
        return f"batch {index}"


MIXTURE = Mixture([1.0, 2.0], seed=3, num_draws=60)


def numbers(first_step: int = 0, rank: int = 0, world_size: int = 1, threads: int = 1) -> list[int]:
    """Every micro-batch of 6 per step that one worker gets."""
    loader = Loader([Counting(0), Counting(1)], MIXTURE, 6, first_step, rank, world_size, threads)
    found = [loader.next() for _ in range((10 - first_step) * 6 // world_size)]
    loader.close()
    assert all(micro_batch.num_steps == 5 for micro_batch in found)
    return [micro_batch.parts[0].batch.number for micro_batch in found]


def test_the_order_is_that_of_the_mixture_whatever_the_number_of_threads() -> None:
    expected = [100 * task + index for task, index in (MIXTURE[draw] for draw in range(60))]
    assert numbers(threads=1) == numbers(threads=4) == expected


def test_a_loader_that_begins_later_goes_on_exactly_there() -> None:
    assert numbers(first_step=4, threads=3) == numbers()[24:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_share_out_each_steps_micro_batches(world_size: int) -> None:
    shares = [numbers(rank=rank, world_size=world_size) for rank in range(world_size)]
    each = 6 // world_size
    for step in range(10):
        together = [number for share in shares for number in share[step * each : (step + 1) * each]]
        assert sorted(together) == sorted(numbers()[step * 6 : (step + 1) * 6])


def test_waiting_for_data_is_counted() -> None:
    class Slow(Counting):
        def parts(self, index: int) -> list[Numbered]:
            time.sleep(0.05)
            return super().parts(index)

    loader = Loader([Slow(0), Slow(1)], MIXTURE, 1, 0)
    for _ in range(4):
        loader.next()
    loader.close()
    assert loader.waited_s > 0.1
    ready = Loader([Counting(0), Counting(1)], MIXTURE, 1, 0)
    time.sleep(0.1)
    ready.next()
    ready.close()
    assert ready.waited_s < 0.05


def test_an_error_while_reading_reaches_training() -> None:
    class Broken(Counting):
        def parts(self, index: int) -> list[Numbered]:
            raise OSError("disk gone")

    loader = Loader([Broken(0), Broken(1)], MIXTURE, 1, 0)
    with pytest.raises(OSError, match="disk gone"):
        loader.next()
    loader.close()
