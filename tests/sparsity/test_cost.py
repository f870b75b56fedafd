"""The analytic cost against the published figures and against the real modules."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsevid.diffusion.samplers import sampler_times
from sparsevid.models.presets import PRESETS, build_spec, preset_schedule
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.cost import forward_macs, frontier, layer_macs, parameter_count, sampling_macs
from sparsevid.sparsity.schedule import paper_schedule
from sparsevid.sparsity.spec import ModelSpec

TIMES = sampler_times("ddim", 250)


@pytest.mark.parametrize(
    ("preset", "side", "published"), [("DiT-XL/2", 32, 118.64), ("DiT-XL/2", 64, 525.0), ("DiT-B/2", 32, 23.01)]
)
def test_dense_cost_is_the_published_one(preset, side, published):
    assert forward_macs(build_spec(preset, input_size=(1, side, side))) / 1e9 == pytest.approx(published, rel=0.015)


@pytest.mark.parametrize(
    ("preset", "side", "rates", "published"),
    [
        ("SparseDiT-B/2", 32, (0.61, 0.86), 14.34),
        ("SparseDiT-XL/2", 32, (0.61, 0.86), 68.05),
        ("SparseDiT-XL/2", 64, (0.61, 0.86), 286.0),
        ("SparseDiT-XL/2", 64, (0.90, 0.96), 235.0),
    ],
)
def test_sparse_cost_is_the_published_one_when_counted_naively(preset, side, rates, published):
    schedule = paper_schedule((1, side // 2, side // 2), 1, *rates)
    spec = build_spec(preset, input_size=(1, side, side), sparse_grid=schedule.stages[0].grid)
    cost = sampling_macs(spec, schedule, TIMES, naive_pooling=True, naive_w1=True)
    assert cost.mean_macs / 1e9 == pytest.approx(published, rel=0.015)
    assert sampling_macs(spec, schedule, TIMES).mean_macs < cost.mean_macs


def test_sparse_latte_costs_at_most_0_44_of_dense():
    spec = build_spec("SparseLatte-XL/2")
    schedule = paper_schedule(spec.dense_grid(), 4, 1 - (8 / 16) ** 2, 1 - (4 / 16) ** 2)
    cost = sampling_macs(spec, schedule, TIMES)
    assert [stage.stage.grid for stage in cost.stages] == [(4, side, side) for side in (8, 7, 6, 5, 4)]
    assert cost.dense_macs / 1e9 == pytest.approx(1862.8, abs=0.1)
    assert 0.41 < cost.ratio <= 0.44


@pytest.mark.parametrize(("preset", "published"), [("PixArt-XL/2-256", 148.73), ("SparsePixArt-XL/2-256", 91.62)])
def test_the_published_cost_of_text_to_image(preset, published):
    """Counted as public code computes it; with M's dense tokens listening, which the published figure speaks for."""
    naive = {"naive_pooling": True, "naive_w1": True, "naive_text": True}
    spec = build_spec(preset)
    schedule = preset_schedule(preset) if spec.is_sparse else None
    public, own = (sampling_macs(spec, schedule, TIMES, **options).mean_macs / 1e9 for options in (naive, {}))
    assert public == pytest.approx(published, rel=0.015 if spec.is_sparse else 0.005)
    assert public == pytest.approx(90.86 if spec.is_sparse else 149.05, abs=0.01)
    assert own == pytest.approx(78.67 if spec.is_sparse else 139.41, abs=0.01)
    if spec.is_sparse:
        other = replace(spec, merge_text="sparse")
        assert sampling_macs(other, schedule, TIMES, **naive).mean_macs / 1e9 == pytest.approx(88.56, abs=0.01)
        assert sampling_macs(other, schedule, TIMES).mean_macs / 1e9 == pytest.approx(76.37, abs=0.01)


COUNTED = [name for name in PRESETS if "/2" in name and not PRESETS[name].text_channels]
OF_TEXT = [pytest.param(name, marks=pytest.mark.slow) for name in PRESETS if PRESETS[name].text_channels]


@pytest.mark.parametrize("preset", [*COUNTED, *OF_TEXT])
def test_cost_is_what_the_flop_counter_sees(preset):
    """The real modules on the meta device, attention in plain products: PyTorch counts 2 FLOPs a multiply-add."""
    spec = PRESETS[preset]
    with torch.device("meta"):
        model = DiffusionTransformer(spec, attention="math")
        x, t = torch.empty(1, spec.in_channels, *spec.input_size), torch.empty(1)
        labels = torch.empty(1, dtype=torch.long) if spec.num_classes else None
        text = torch.empty(1, 77, spec.text_channels) if spec.text_channels else None
    grids = [stage.grid for stage in preset_schedule(preset).stages] if spec.is_sparse else [None]
    for grid in {grids[0], grids[-1]}:
        for prepared in (False, True) if spec.text_channels else (False,):
            with torch.inference_mode():
                given = model.prepare_text(text) if prepared else text
                with FlopCounterMode(display=False) as counter:
                    model(x, t, labels, text=given, grid=grid)
            counted = forward_macs(spec, grid=grid, text_tokens=77, naive_text=not prepared)
            assert counted == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_those_of_the_real_model(preset):
    with torch.device("meta"):
        model = DiffusionTransformer(PRESETS[preset])
    assert parameter_count(PRESETS[preset]) == sum(p.numel() for p in model.parameters())


def test_conditional_and_flow_models_are_counted_too():
    spec = ModelSpec("1P 1(1M1S1R1D)", 24, 2, (4, 8, 8), 3, num_classes=5, learn_sigma=False, sparse_grid=(2, 2, 2))
    model = DiffusionTransformer(spec)
    assert parameter_count(spec) == sum(p.numel() for p in model.parameters())


def test_every_way_of_a_model_of_text_is_counted():
    sizes = {"hidden_size": 24, "num_heads": 2, "input_size": (1, 16, 16), "sparse_grid": (1, 3, 3)}
    sparse = replace(PRESETS["SparsePixArt-XL/2-1024"], layout="1P 1(1M1S1R1D)", **sizes)
    others = {"merge_text": "sparse", "null_caption": True, "shared_modulation": False}
    for spec in (sparse, sparse.dense(), replace(sparse, **others), replace(sparse, input_size=(4, 16, 16))):
        with torch.device("meta"):
            model = DiffusionTransformer(spec, attention="math")
            x, t, text = torch.empty(1, 4, *spec.input_size), torch.empty(1), torch.empty(1, 77, 4096)
        assert parameter_count(spec) == sum(p.numel() for p in model.parameters())
        for prepared in (False, True):
            with torch.inference_mode():
                given = model.prepare_text(text) if prepared else text
                with FlopCounterMode(display=False) as counter:
                    model(x, t, text=given)
            counted = forward_macs(spec, text_tokens=77, naive_text=not prepared)
            assert counted == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)


def test_frontier_of_planted_points():
    points = [(1.0, 9.0), (2.0, 5.0), (3.0, 5.0), (2.0, 6.0), (4.0, 1.0), (4.0, 1.0), (0.5, 9.5), (5.0, 0.5)]
    assert frontier(points) == [True, True, False, False, True, True, True, True]
    assert frontier([]) == [] and frontier([(1.0, 1.0)]) == [True]


def test_no_other_point_beats_one_of_the_frontier():
    for points in torch.randint(0, 12, (200, 40, 2), generator=torch.Generator().manual_seed(0)).double():  # with ties
        lies = frontier([tuple(point) for point in points.tolist()])
        beaten = [bool(((points <= point).all(dim=1) & (points < point).any(dim=1)).any()) for point in points]
        assert lies == [not each for each in beaten]
        front = sorted({tuple(point) for point, own in zip(points.tolist(), lies, strict=True) if own})
        assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(front))


@pytest.mark.parametrize("index", [1, 2, 3])  # M, S and R
def test_a_layer_of_sparse_tokens_needs_their_grid(index):
    spec = ModelSpec("1P 1(1M1S1R1D)", 32, 2, (4, 8, 8), sparse_grid=(2, 2, 2))
    with pytest.raises(ValueError, match=f"layer {index} of .* is {spec.parsed_layout.kinds[index]}, which needs a"):
        layer_macs(spec, index, spec.dense_grid(), None)
    assert layer_macs(spec, 0, spec.dense_grid(), None) > 0
