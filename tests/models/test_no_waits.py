"""The whole XL/2 forward, every stage, leaves the host alone, on a GPU that is not there."""

from dataclasses import replace

import pytest
import torch
from fake_gpu import Traffic, fake_gpu

from sparsevid.diffusion.samplers import Model, Told, call_at
from sparsevid.models.presets import PRESETS, preset_schedule
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import parse_saving, saved
from sparsevid.sparsity.spec import ModelSpec

SMALL = ModelSpec("1P 2(1M2S1R1D) 1D", 64, 2, (4, 8, 8), sparse_grid=(2, 3, 3), num_classes=3)
CALLS = {
    "plain": {},
    "stills": {"images": 2},
    "features": {"features": [2, 5]},
    "steps": {"saving": "steps:every=2"},
    "static": {"saving": "static:every=2"},
}


def forward(model: DiffusionTransformer, batch: int = 2, grid=None, called: Model | None = None, **options):
    """A call of the model, or of what wraps it, with inputs that are on the device already."""
    spec, stills = model.spec, options.get("images", 0)
    dtype = next(model.parameters()).dtype
    frames, *sides = spec.input_size
    x = torch.randn(batch, spec.in_channels, frames + stills, *sides, device="cuda", dtype=dtype)
    shape = (batch, 1 + stills) if stills else (batch,)
    labels = torch.zeros(shape, dtype=torch.long, device="cuda") if spec.num_classes else None
    return call_at(called or model, x, torch.zeros(batch, device="cuda"), Told(0.0), labels=labels, grid=grid, **options)


def build(spec: ModelSpec, dtype: torch.dtype, **options) -> DiffusionTransformer:
    with torch.device("cuda"):
        return DiffusionTransformer(spec, **options).to(dtype)


def check(traffic: Traffic, call) -> None:
    """At the first call tables go to the device, once each; at the second nothing crosses."""
    traffic.clear()
    call()
    assert {event.kind for event in traffic.events} <= {"to device"}
    first = [(event.shape, event.line) for event in traffic.events]
    assert all("embeddings.py" in line or "tokens.py" in line for _, line in first)
    traffic.clear()
    call()
    assert traffic.events == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_xl_forward(dtype):
    with fake_gpu() as traffic, torch.no_grad():
        model = build(PRESETS["Latte-XL/2"], dtype)
        check(traffic, lambda: forward(model))


def check_stages(spec: ModelSpec) -> None:
    with fake_gpu() as traffic, torch.no_grad():
        model = build(spec, torch.bfloat16)
        for stage in preset_schedule("SparseLatte-XL/2").stages:
            check(traffic, lambda stage=stage: forward(model, grid=stage.grid))


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_every_stage_of_the_sparse_xl_forward(residual):
    check_stages(replace(PRESETS["SparseLatte-XL/2"], residual_upsampling=residual))


def test_every_stage_through_a_layer_of_each_kind():
    check_stages(replace(PRESETS["SparseLatte-XL/2"], layout="1P 1(1M1S1R1D)", residual_upsampling=True))


@pytest.mark.parametrize("training", [False, True], ids=["sampling", "training"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_kind_of_call(call, training):
    with fake_gpu() as traffic, torch.set_grad_enabled(training):
        model = build(SMALL, torch.bfloat16, checkpoint_layers="RD")
        options = dict(call)
        called = saved(model, parse_saving(options.pop("saving"))) if "saving" in options else model
        for _ in range(2):  # with a saving, of two calls the second leaves something out
            check(traffic, lambda: forward(model, called=called, **options))


def test_each_table_is_on_the_device_once():
    """Positions of all stages and sizes: as many copies as there are different tables, however often each is used."""
    with fake_gpu() as traffic, torch.no_grad():
        model = build(replace(PRESETS["SparseLatte-XL/2"], layout="1P 2(1M1S1R1D)"), torch.bfloat16)
        traffic.clear()
        grids = [stage.grid for stage in preset_schedule("SparseLatte-XL/2").stages]
        for grid in grids * 2:
            forward(model, grid=grid)
        dense = model.spec.dense_grid()
        spatial = {(grid.h, grid.w) for grid in [dense, *grids]}
        temporal = {grid.t for grid in [dense, *grids]}
        upsampling = {(grid.h, grid.w) for grid in grids}
        assert len(traffic.events) == len(spatial) + len(temporal) + len(upsampling) + 1  # and frequencies of time
