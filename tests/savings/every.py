"""One table of all savings, and how tests sample with them: tiny models of each family, guided, by a token schedule."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from parity import disturbed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparsevid.diffusion.samplers import DIFFUSION_SAMPLERS, SAMPLERS, Model, sampler_times
from sparsevid.diffusion.wrappers import in_float32, with_guidance, with_token_schedule
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import parse_saving, saved
from sparsevid.savings.base import Policy
from sparsevid.savings.fits import Fit, plain
from sparsevid.savings.options import SAVINGS
from sparsevid.savings.tally import Tally
from sparsevid.sparsity.schedule import paper_schedule
from sparsevid.sparsity.spec import ModelSpec


class Line(NamedTuple):
    """What tests must know of a saving.

    Attributes:
        nothing: options that leave nothing out; some of them run through all of the policy's code.
        typical: options that leave something out in `STEPS` steps of any sampler, if the model has what they act on.
        sparse: options that also do, of sparse models.
        fixed: whether it decides by numbers of calls and times alone, and so for each clip of a batch as for one alone.
        fit: values of a fit, of a policy that has one.
    """

    nothing: tuple[str, ...]
    typical: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()
    fixed: bool = True
    fit: dict[str, list[float]] | None = None


LINES = {
    "steps": Line(("every=1",), sparse=("every=2",)),
    "static": Line(("every=1",), ("every=2", "every=3")),
    "first_block": Line(("threshold=0", "threshold=1e-30"), ("threshold=10",), fixed=False),
    "teacache": Line(
        ("threshold=0", "threshold=1e-30"), ("threshold=2.5",), fixed=False, fit={"coefficients": [0.0, 0.0, 0.0, 0.0, 1.0]}
    ),
    "magcache": Line(("threshold=0", "threshold=1e-30"), ("threshold=9,start=0.1",), fit={"conditional": [0.9, 0.8, 0.9]}),
    "taylor": Line(("every=1",), ("every=2", "every=3,order=2")),
    "pab": Line(("every=1", "every=2,above=0,below=0,mlp=off"), ("every=2", "spatial=2,temporal=3")),
    "foresight": Line(("threshold=0", "threshold=1e-30", "every=1"), ("threshold=1e9",), fixed=False),
    "faster": Line(("every=1", "every=1,null_every=1", "start=1"), ("start=0.2",)),
    "merging": Line(("ratio=0", "ratio=1e-30"), ("ratio=0.5",)),
    "guidance": Line(("every=1",), ("every=2",), ("sparse=off", "grid=1x1x1", "every=2,sparse=off,grid=1x1x1")),
}
TABLE = {name: LINES[name] for name in SAVINGS}
LATTE = ModelSpec("4D", 24, 2, (4, 8, 8), num_classes=5)
FAMILIES = {
    "dense Latte": LATTE,
    "sparse Latte": replace(LATTE, layout="1P 1(1M2S1R1D) 1D", sparse_grid=(2, 2, 2)),
    "residual Latte": replace(LATTE, layout="1P 1(1M2S1R1D) 1D", sparse_grid=(2, 2, 2), residual_upsampling=True),
    "dense DiT": replace(LATTE, input_size=(1, 8, 8)),
    "sparse DiT": replace(LATTE, layout="1P 1(1M1S1R1D)", input_size=(1, 8, 8), sparse_grid=(1, 2, 2)),
}
DENSE = ModelSpec("3D", 16, 2, (1, 4, 4), learn_sigma=False)  # without classes
CASES = [  # families and samplers, each of them once at least
    ("dense Latte", "heun"), ("dense Latte", "dpm++"), ("sparse Latte", "euler"), ("sparse Latte", "ddim"),
    ("residual Latte", "euler"), ("dense DiT", "heun"), ("dense DiT", "ddpm"), ("sparse DiT", "ddim"),
]  # fmt: skip
STEPS = 5
LABELS = torch.tensor([1, 4])


def options(spec: ModelSpec, name: str) -> tuple[str, ...]:
    """Texts of a saving's options that leave something out of this model."""
    line = TABLE[name]
    return tuple(f"{name}:{each}" for each in line.typical + (line.sparse if spec.is_sparse else ()))


def all_options(spec: ModelSpec, **kept: bool) -> list[str]:
    """Those of all savings whose lines have these attributes."""
    lines = {name for name, line in TABLE.items() if all(getattr(line, key) == value for key, value in kept.items())}
    return [text for name in TABLE if name in lines for text in options(spec, name)]


def made(text: str, spec: ModelSpec) -> Policy:
    """The saving, with a fit to the model if it needs one."""
    policy = parse_saving(text)
    if values := TABLE[policy.name].fit:
        policy = policy.with_fit(made_up(policy.name, spec, **values))
    return policy


def made_up(saving: str, spec: ModelSpec = DENSE, **values: list[float]) -> Fit:
    """A fit of these values."""
    return Fit(saving, values, {"points": 0, "r2": 0.0, "correlation": 0.0}, [], plain(spec.to_dict()), None, {})


@cache
def network(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> DiffusionTransformer:
    """A model beside its initialisation, whose attention is products that can be counted."""
    with torch.inference_mode(False):  # whichever test is the first, for others it has gradients
        model = DiffusionTransformer(spec, attention="math")
        model.load_state_dict(disturbed(spec).state_dict())
        return model.eval().to(dtype)


def latents(spec: ModelSpec, clips: int = 2, side: int = 8) -> Tensor:
    return torch.randn(clips, 4, spec.input_size[0], side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def sample(
    spec: ModelSpec,
    texts: Sequence[str] | None,
    sampler: str = "euler",
    *,
    clips: slice = slice(None),
    steps: int = STEPS,
    scheduled: bool = True,
    guided: bool = True,
    interval: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.float32,
    change: Callable[[DiffusionTransformer], Model] = lambda model: model,
    tally: Tally | None = None,
) -> Tensor:
    """Clips of a model of this family, sampled with these savings, by a token schedule if it is sparse and `scheduled`.

    Args:
        texts: the savings; None: nothing of savings is called.
        clips: which of the batch of two.
        change: what is called in place of the model.
    """
    gaussian = sampler in DIFFUSION_SAMPLERS
    spec = replace(spec, learn_sigma=gaussian)
    model = change(network(spec, dtype))
    if texts is not None:
        model = saved(model, [made(text, spec) for text in texts], sampler_times(sampler, steps), seed=3, tally=tally)
    if spec.is_sparse and scheduled:
        model = with_token_schedule(model, paper_schedule(spec.dense_grid(), spec.sparse_grid[0], 0.3, 0.8))
    if guided:
        model = with_guidance(model, 2.0, 5, interval=interval)
    x, generator = latents(spec), torch.Generator().manual_seed(2)
    noise = {"noise": lambda: torch.randn(x.shape, generator=generator)[clips]} if gaussian else {}
    return SAMPLERS[sampler](in_float32(model, dtype), x[clips], steps, labels=LABELS[clips], **noise)


def counted(spec: ModelSpec, texts: Sequence[str], sampler: str = "euler", **options) -> tuple[Tensor, Tally]:
    """What `sample` gives, and what it computed by our count, which has to be PyTorch's."""
    tally = Tally()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        clips = sample(spec, texts, sampler, tally=tally, **options)
    assert abs(2 * tally.macs / counter.get_total_flops() - 1) < 1e-3
    return clips, tally


def alone(spec: ModelSpec, texts: Sequence[str], sampler: str = "euler", **options) -> Tensor:
    """What `sample` gives of each of the two clips by itself."""
    return torch.cat([sample(spec, texts, sampler, clips=slice(index, index + 1), **options) for index in range(2)])
