"""What training sends to the device: batches in their order, one ahead; nothing that the host would wait for."""

import pytest
import torch
from fake_gpu import fake_gpu
from torch import nn

from sparsevid.data.feed import Feed
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ObjectiveConfig
from sparsevid.sparsity.schedule import constant_schedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.transfer import to_device
from sparsevid.training.objective import build_objective, draw_dropped, draw_noise, draw_times

KEY = {"seed": 0, "step": 3, "slot": 0}
SPEC = ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (4, 8, 8), sparse_grid=(2, 2, 2), num_classes=5)


def batches(count: int, taken: list[int]):
    for index in range(count):
        taken.append(index)
        yield {"clip": torch.full((2, 3), index), "video": torch.tensor([index])}
    raise OSError("the disk is gone")


def test_batches_keep_their_order_whether_they_are_fetched_ahead_or_not():
    taken: list[int] = []
    feed = Feed(batches(4, taken), torch.device("cpu"))
    feed.fetch()
    feed.fetch()
    assert taken == [0], "one ahead, and no more"
    seen = [int(next(feed)["clip"][0, 0])]
    seen.append(int(next(feed)["video"]))
    feed.fetch()
    seen += [int(next(feed)["clip"][0, 0]), int(next(feed)["clip"][0, 0])]
    assert seen == taken == [0, 1, 2, 3]


def test_an_error_belongs_to_its_batch():
    """What cannot be read of the next batch does not end the step that is under way."""
    feed = Feed(batches(1, []), torch.device("cpu"))
    assert next(feed)["video"] == 0
    feed.fetch()
    with pytest.raises(OSError, match="the disk is gone"):
        next(feed)


def test_the_end_of_a_loader_is_the_end_of_the_feed():
    assert [
        int(batch["video"]) for batch in Feed(iter([{"clip": torch.zeros(1), "video": torch.ones(1)}]), torch.device("cpu"))
    ] == [1]


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_no_micro_batch_waits_for_the_device(kind):
    """Times, noise and labels are drawn on the host and sent on; tables of the objective are on the device after the first."""
    objective, schedule = build_objective(ObjectiveConfig(kind=kind)), constant_schedule((2, 2, 2))
    with fake_gpu() as traffic:
        with torch.device("cuda"):
            head = nn.Conv3d(4, 8 if objective.learn_sigma else 4, 1)

        def model(x, t, labels):
            return head(x * (t.to(x.dtype) + labels).view(-1, 1, 1, 1, 1))

        for turn in range(2):
            traffic.clear()
            x0 = to_device(torch.randn(2, 4, 4, 8, 8), "cuda")
            draw = draw_times(objective, schedule, len(x0), slots=2, **KEY)
            labels = torch.zeros(2, dtype=torch.long).masked_fill(draw_dropped((2,), 0.5, **KEY), 5)
            labels = to_device(labels, "cuda")
            u, noise = to_device(draw.u, "cuda"), draw_noise(x0, **KEY)
            objective.loss(model, x0, u, noise, labels=labels).mean()
            assert turn == 0 or not traffic.waits, traffic.waits
            assert len(traffic.copies) == 4 or not turn, "latents, labels, times and noise"


@pytest.mark.parametrize("grid", [(2, 2, 2), (1, 4, 4)])
def test_the_model_waits_for_nothing_in_a_training_step(grid):
    with fake_gpu() as traffic:
        with torch.device("cuda"):
            model = DiffusionTransformer(SPEC)
            x, t, labels = torch.randn(2, 4, 4, 8, 8), torch.tensor([900, 100]), torch.tensor([0, 4])
        for _ in range(2):
            traffic.clear()
            model(x, t, labels, grid=grid)
        assert not traffic.waits, traffic.waits


def test_what_is_pinned_is_sent_without_waiting():
    with fake_gpu() as traffic:
        values = to_device(to_device(torch.zeros(3).pin_memory(), "cuda"), "cuda")
        assert values.device.type == "cuda" and len(traffic.copies) == 1 and not traffic.waits
    assert to_device(torch.ones(2), "cpu").tolist() == [1.0, 1.0]
