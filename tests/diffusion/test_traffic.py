"""A sampler's step never makes the host wait for a GPU, shown on one that is not there (`fake_gpu`)."""

from collections.abc import Sequence

import pytest
import torch
from fake_gpu import Event, Traffic, fake_gpu
from torch._subclasses.fake_tensor import unset_fake_temporarily

from sparsevid.diffusion import samplers
from sparsevid.diffusion.gaussian import GaussianDiffusion
from sparsevid.diffusion.samplers import DIFFUSION_SAMPLERS, SAMPLERS, sampler_times
from sparsevid.diffusion.wrappers import with_guidance, with_token_schedule
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import parse_saving, saved
from sparsevid.sparsity.schedule import paper_schedule
from sparsevid.sparsity.spec import ModelSpec

STEPS = 8
BY_STEPS = ["steps:every=2"], ["static:every=2", "guidance:every=2"], ["guidance:grid=1x2x2,sparse=off"]
CASES = [*((name, {}, BY_STEPS[0]) for name in SAMPLERS), ("ddim", {"eta": 1.0}, [])]
CASES += [(name, {}, savings) for name, savings in zip(("ddpm", "heun"), BY_STEPS[1:], strict=True)]


def events_of_steps(sampler: str, traffic: Traffic, savings: Sequence[str], **options) -> list[list[Event]]:
    """What crossed in each step of a walk through stages, with guidance inside an interval and these savings."""
    spec = ModelSpec(
        "1P 1(1M1S1R1D) 1D", 24, 2, (4, 8, 8), sparse_grid=(2, 2, 2), num_classes=3, learn_sigma=sampler in DIFFUSION_SAMPLERS
    )
    with torch.device("cuda"):
        model = DiffusionTransformer(spec)
        x, labels = torch.randn(2, 4, 4, 8, 8), torch.tensor([0, 2])
    schedule = paper_schedule(spec.dense_grid(), 2, 0.3, 0.8)
    if sampler in DIFFUSION_SAMPLERS:
        options["noise"] = lambda: torch.randn_like(x)
    found: list[list[Event]] = []

    def watched(step, u, x):
        found.append(list(traffic.events))
        traffic.clear()

    for _ in range(2):  # in the first walk the tables of positions come to the device
        found.clear()
        saving = saved(model, [parse_saving(text) for text in savings], sampler_times(sampler, STEPS))
        guided = with_guidance(with_token_schedule(saving, schedule), 2.0, spec.num_classes, interval=(0.2, 0.8))
        traffic.clear()
        with torch.no_grad():
            SAMPLERS[sampler](guided, x, STEPS, labels=labels, on_step=watched, **options)
    return found


@pytest.mark.parametrize(("sampler", "options", "savings"), CASES)
def test_no_step_of_a_sampler_copies_or_waits(sampler, options, savings, monkeypatch):
    """Also with savings that decide by the number of the call alone."""
    schedulers = samplers._dpm_scheduler

    def of_numbers(timesteps):
        with unset_fake_temporarily():  # it takes its tables through NumPy, which fake tensors do not go to
            return schedulers(timesteps)

    monkeypatch.setattr(samplers, "_dpm_scheduler", of_numbers)
    with fake_gpu() as traffic:
        first, *others = events_of_steps(sampler, traffic, savings, **options)
    assert len(others) == STEPS - 1 and others == [[]] * len(others)
    assert len(first) <= 1, first  # all tables of the sampler, once


def test_a_call_by_hand_waits_once_for_its_times():
    """So that what the test above counts is not nothing."""
    with fake_gpu(answer=500) as traffic:
        scheduled = with_token_schedule(lambda x, t, grid: x, paper_schedule((4, 8, 8), 2, 0.3, 0.8))
        x = torch.randn(2, 4, 4, 8, 8, device="cuda")
        t = torch.full((2,), 500.0, device="cuda")
        traffic.clear()
        scheduled(x, t)
        assert traffic.waits


def test_the_loss_copies_its_tables_once():
    diffusion = GaussianDiffusion()
    with fake_gpu() as traffic:
        x0, noise = torch.randn(2, 2, 4, 8, 8, device="cuda")
        t = torch.tensor([3, 900], device="cuda")
        counts = []
        for _ in range(2):
            traffic.clear()
            diffusion.loss(torch.cat([noise, noise], dim=1), x0, diffusion.q_sample(x0, t, noise), t, noise)
            counts.append(len(traffic.events))
    assert counts == [1, 0]


def test_tables_that_validation_copied_serve_training():
    diffusion, x0, t = GaussianDiffusion(), torch.randn(2, 1, 4), torch.tensor([3, 900])
    with torch.inference_mode():
        diffusion.q_sample(x0, t, x0)
    output = torch.zeros(2, 2, 4, requires_grad=True)
    diffusion.loss(output, x0, x0, t, x0).loss.sum().backward()
    assert output.grad.isfinite().all()
