"""The noise of samples: the same whoever draws it and when, and on its way to a GPU nobody waits."""

from itertools import chain

import pytest
import torch
from fake_gpu import fake_gpu

from sparsevid.generation.noise import SampleNoise, noise_of_batches

CPU = torch.device("cpu")
SHAPE = (4, 2, 3, 3)


def drawn(noise: SampleNoise, draws: int) -> torch.Tensor:
    """What it starts from and each draw: (1 + draws, B, C, T, H, W)."""
    return torch.stack([noise.start(), *(noise() for _ in range(draws))])


@pytest.mark.parametrize("announced", [0, 3, 5])
def test_noise_drawn_in_a_thread_is_that_drawn_when_asked(announced):
    """Also where more, or fewer, draws are made than were announced."""
    here = drawn(SampleNoise(SHAPE, [0, 7], 3, CPU), 4)
    assert torch.equal(drawn(SampleNoise(SHAPE, [0, 7], 3, CPU, announced, ahead=True), 4), here)
    assert len({each.sum().item() for each in here.flatten(0, 1)}) == 10


def test_noise_of_a_sample_is_the_same_in_any_batch():
    batches = [[0, 1], [2, 3]]
    together = [drawn(noise, 2) for noise in noise_of_batches(batches, SHAPE, 5, CPU, 2)]
    alone = [drawn(SampleNoise(SHAPE, [index], 5, CPU), 2) for index in chain(*batches)]
    assert torch.equal(torch.cat(together, dim=1), torch.cat(alone, dim=1))


def test_the_next_batch_is_begun_before_this_one_is_used():
    begun = []
    noises = noise_of_batches((begun.append(each) or each for each in ([0], [1], [2])), SHAPE, 0, CPU, 0)
    counts = [len(begun) for _ in noises]
    assert counts == [2, 3, 3]


def test_an_error_of_the_thread_is_raised_where_the_noise_is_asked_for():
    noise = SampleNoise((-1,), [0], 0, CPU, ahead=True)
    with pytest.raises(RuntimeError, match="negative dimension"):
        noise.start()


def test_noise_for_a_gpu_is_copied_without_waiting():
    with fake_gpu() as traffic:
        noise = SampleNoise(SHAPE, [0, 1], 0, torch.device("cuda"), 2, ahead=False)  # the count sees one thread
        assert [each.device.type for each in (noise.start(), noise(), noise())] == ["cuda"] * 3
    assert len(traffic.copies) == 3 and traffic.waits == []
