"""Policies that are led through calls with planted outputs, and tiny models that are sampled with savings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparsevid.diffusion.samplers import DIFFUSION_SAMPLERS, SAMPLERS, sampler_times
from sparsevid.diffusion.wrappers import with_guidance, with_token_schedule
from sparsevid.models.saving import Part, Place
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import parse_saving, saved
from sparsevid.savings.base import Call, Policy
from sparsevid.savings.tally import Tally
from sparsevid.sparsity.schedule import paper_schedule
from sparsevid.sparsity.spec import ModelSpec

LATTE = ModelSpec("4D", 24, 2, (4, 8, 8), num_classes=5)
SPARSE = replace(LATTE, layout="1P 1(1M2S1R1D)", sparse_grid=(2, 2, 2))
MODELS = {"Latte": LATTE, "sparse": SPARSE, "DiT": replace(LATTE, layout="2D", input_size=(1, 8, 8))}
SPACE, TIME, WINDOW, TEXT = (
    Place("attention", index, "D", axis) for index, axis in enumerate(("space", "time", "window", "text"))
)
CASES = [("Latte", "heun"), ("Latte", "dpm++"), ("sparse", "euler"), ("sparse", "ddim"), ("DiT", "heun"), ("DiT", "ddpm")]
TWICE = [("euler", 12), ("heun", 8), ("ddim", 12)]  # samplers and steps


class Step(NamedTuple):
    """What stood for a part at a call, and whether it was computed."""

    computed: bool
    output: Tensor


def lead(
    text: str,
    times: Sequence[float],
    outputs: Callable[[Place, int], Tensor],
    places: Sequence[Place],
    half: str = "conditional",
) -> tuple[list[dict[Place, Step]], Policy]:
    """Lead a saving through calls at these times, in each of which every place has its planted output.

    Returns:
        What stood for each place at each call, and the policy at the end.
    """
    policy, calls = parse_saving(text).fresh(half), []
    for number, u in enumerate(times):
        policy.begin(Call(number, u, len(times), LATTE, LATTE.dense_grid(), None))
        calls.append({place: ask(policy, place, outputs(place, number)) for place in places})
    return calls, policy


def ask(policy: Policy, place: Place, planted: Tensor) -> Step:
    """One place at a call that has begun."""
    part = Part(lambda: planted, tuple)
    output = policy.reuse(place, part)
    if output is not None:
        return Step(False, output)
    policy.keep(place, part, part())
    return Step(True, planted)


def computed(calls: Sequence[dict[Place, Step]], place: Place) -> list[int]:
    """Numbers of the calls that computed it."""
    return [number for number, steps in enumerate(calls) if steps[place].computed]


@cache
def network(spec: ModelSpec) -> DiffusionTransformer:
    """A model beside its initialisation; its attention is products, which can be counted."""
    torch.manual_seed(0)
    model = DiffusionTransformer(spec, attention="math").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def sample(
    spec: ModelSpec,
    texts: Sequence[str],
    sampler: str,
    steps: int,
    *,
    clips: slice = slice(None),
    guided: bool = True,
    interval: tuple[float, float] | None = None,
) -> tuple[Tensor, Tally]:
    """Two clips, or some of them, by a token schedule where there are sparse tokens; counts have to be PyTorch's."""
    spec, tally = replace(spec, learn_sigma=sampler in DIFFUSION_SAMPLERS), Tally()
    model = saved(network(spec), [parse_saving(text) for text in texts], sampler_times(sampler, steps), tally=tally)
    if spec.is_sparse:
        model = with_token_schedule(model, paper_schedule(spec.dense_grid(), spec.sparse_grid[0], 0.3, 0.8))
    if guided:
        model = with_guidance(model, 2.0, 5, interval=interval)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, spec.input_size[0], 8, 8, generator=generator)
    noise = {"noise": lambda: torch.randn(x.shape, generator=generator)[clips]} if sampler in DIFFUSION_SAMPLERS else {}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        out = SAMPLERS[sampler](model, x[clips], steps, labels=torch.tensor([1, 3])[clips], **noise)
    assert abs(2 * tally.macs / counter.get_total_flops() - 1) < 1e-3
    return out, tally
