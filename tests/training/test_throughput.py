"""Rates follow from counts and clocks; tokens and arithmetic are those of the model that runs."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.cost import forward_macs
from sparsevid.sparsity.schedule import paper_schedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.throughput import Throughput, dense_tokens, layer_tokens, training_flops

SCHEDULE = paper_schedule((4, 4, 4), 1, 0.3, 0.8)
SPEC = ModelSpec("2P 1(1M2S1R1D) 2D", 32, 2, (4, 8, 8), sparse_grid=SCHEDULE.stages[0].grid)
GRID = SCHEDULE.stages[-1].grid


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rates_come_from_counted_clips_and_seconds():
    """Ten seconds, of which four are paused and three waited for data: what is counted, over six seconds."""
    clock = Clock()
    throughput = Throughput(SPEC, SCHEDULE, peak_tflops=1e-3, clock=clock)
    stages = [0, 0, len(SCHEDULE.stages) - 1]
    for stage in stages:
        with throughput.waiting():
            clock.now += 1.0
        clock.now += 1.0
        throughput.count(stage, clips=2)
    with throughput.pause():
        clock.now += 4.0
    values = throughput.read()
    grids = [SCHEDULE.stages[stage].grid for stage in stages]
    flops = sum(6 * 2 * forward_macs(SPEC, grid=grid) for grid in grids)
    assert values["clips_per_second"] == pytest.approx(1.0)
    assert values["tokens_per_second"] == pytest.approx(4 * 4 * 4)
    assert values["layer_tokens_per_second"] == pytest.approx(sum(2 * layer_tokens(SPEC, grid) for grid in grids) / 6)
    assert values["model_tflops"] == pytest.approx(flops / 6 / 1e12)
    assert values["peak_share"] == pytest.approx(values["model_tflops"] / 1e-3)
    assert values["data_wait"] == pytest.approx(0.5)
    assert values["memory_gib"] > 0
    clock.now += 2.0
    throughput.count(0, clips=8)
    assert throughput.read()["clips_per_second"] == pytest.approx(4.0)  # since the last reading


def run(spec: ModelSpec, images: int) -> tuple[int, int]:
    """Operations of a forward and of its backward, as PyTorch counts them."""
    model = DiffusionTransformer(spec, attention="math")
    x = torch.randn(1, spec.in_channels, 4 + images, 8, 8)
    grid = GRID if spec.is_sparse else None
    with FlopCounterMode(display=False) as forward:
        out = model(x, torch.zeros(1), grid=grid, images=images)
    with FlopCounterMode(display=False) as backward:
        out.square().mean().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("images", [0, 3])
@pytest.mark.parametrize("spec", [SPEC, SPEC.dense()], ids=["sparse", "dense"])
def test_operations_are_those_that_run(spec, images):
    """Three forwards; the backward pass needs no gradient of the latents, which makes it a little less than two."""
    forward, backward = run(spec, images)
    counted = training_flops(spec, GRID if spec.is_sparse else None, images)
    assert counted == pytest.approx(3 * forward, rel=0.01)
    assert 1.8 * forward < backward <= 2 * forward * 1.01


@pytest.mark.parametrize("images", [0, 3])
@pytest.mark.parametrize("spec", [SPEC, SPEC.dense()], ids=["sparse", "dense"])
def test_layer_tokens_are_those_that_come_out_of_layers(spec, images):
    model, out = DiffusionTransformer(spec), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, tokens: out.append(tokens.shape[:-1].numel()))
    grid = GRID if spec.is_sparse else None
    with torch.no_grad():
        model(torch.randn(1, spec.in_channels, 4 + images, 8, 8), torch.zeros(1), grid=grid, images=images)
    assert layer_tokens(spec, grid, images) == pytest.approx(sum(out) / spec.depth)


def test_dense_models_work_on_all_tokens_in_each_layer():
    assert layer_tokens(SPEC.dense(), None) == dense_tokens(SPEC) == 64
    image = replace(SPEC.dense(), input_size=(1, 8, 8))
    assert layer_tokens(image, None) == dense_tokens(image) == 16
