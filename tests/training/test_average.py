"""An average on the CPU of weights that are elsewhere: the same average, and no step waits for it."""

import pytest
import torch
from fake_gpu import fake_gpu

from sparsevid.training.ema import EMA
from sparsevid.training.engine import Fragment
from sparsevid.training.outcome import Unread, read


class Weights:
    """What an average asks of an engine: two fragments of weights, and whole tensors."""

    def __init__(self, device: str) -> None:
        self.parts = [torch.ones(3, device=device), torch.ones(4, device=device)]

    def fragments(self):
        return [Fragment(str(index), 0, part) for index, part in enumerate(self.parts)]

    def gather(self, fragments):
        return {name: values.clone() for name, _, values in fragments}

    def move(self, step: int) -> None:
        for part in self.parts:
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(step)))


def test_an_average_that_is_taken_later_is_the_same_to_the_bit():
    """Weights move on meanwhile; an average that is asked for, or replaced, is complete."""
    weights = Weights("cpu")
    at_once, later = EMA(weights, 0.9), EMA(weights, 0.9, "cpu")
    later.deferred = True  # as it is of weights on a GPU
    for step in range(5):
        weights.move(step)
        at_once.update()
        later.update()
        if step in (1, 4):
            expected, found = at_once.state_dict(), later.state_dict()
            assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert later.updates == at_once.updates == 5
    later.load(lambda kind, name, start, count: torch.zeros(count), 7)
    assert all(not value.any() for value in later.state_dict().values()) and later.updates == 7


def test_updates_of_an_average_on_the_cpu_wait_for_nothing(monkeypatch):
    class Event:
        """Of a device that is not there."""

        def record(self) -> None:
            pass

        def synchronize(self) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "Event", Event)
    with fake_gpu() as traffic:
        average = EMA(Weights("cuda"), 0.9, "cpu")
        assert average.deferred and all(values.device.type == "cpu" for _, _, values in average.fragments)
        traffic.clear()
        for _ in range(3):
            average.update()
        assert [event.kind for event in traffic.events] == ["to host"] * 2 * 3 and not traffic.waits, traffic.events
    assert not EMA(Weights("cpu"), 0.9, "cpu").deferred


@pytest.mark.parametrize("steps", [1, 10])
def test_losses_of_many_steps_come_from_the_device_at_one_time(steps):
    sums = torch.tensor([3.0, 0.0, 2.0, 0.0])
    (outcome,) = read([Unread(sums, True, 0.5, 1, False)])
    assert outcome.loss == 1.5 and outcome.stage_losses == {0: 1.5} and (outcome.grad_norm, outcome.redraws) == (0.5, 1)
    assert read([]) == []
    with fake_gpu() as traffic:
        unread = [Unread(torch.ones(4, device="cuda"), True, 0.5, 0, False) for _ in range(steps)]
        traffic.clear()
        read(unread)
        assert [event.kind for event in traffic.events] == ["to host"]
