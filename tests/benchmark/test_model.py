"""Turns, the naive form, the plan of cases, and what is made of their seconds. No test looks at the clock."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from parity import randomise, relative_error
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparsevid.benchmark import model as benchmark
from sparsevid.benchmark.model import (
    DTYPES,
    Case,
    build_random_model,
    compare,
    measure_cases,
    plan_cases,
)
from sparsevid.benchmark.timing import time_alternately, time_turn
from sparsevid.models.naive import naive_forward, naive_macs
from sparsevid.models.presets import PRESETS, build_spec
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.cost import forward_macs
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec

CPU = torch.device("cpu")
SPARSE = ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (4, 8, 12), sparse_grid=(2, 2, 3))
MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch):
    """A dense and a sparse preset of 32 channels."""
    monkeypatch.setitem(PRESETS, "SparseLatte-XS/2", SPARSE)
    monkeypatch.setitem(PRESETS, "Latte-XS/2", SPARSE.dense())


def test_each_turn_goes_through_all_candidates_in_order():
    called = []
    candidates = {name: lambda name=name: called.append(name) for name in ("dense", "sparse", "matmul")}
    assert list(time_turn(candidates)) == ["dense", "sparse", "matmul"]
    called.clear()
    medians = time_alternately(candidates, repeats=3, warmup=2)
    assert called == ["dense", "sparse", "matmul"] * 5
    assert list(medians) == ["dense", "sparse", "matmul"] and min(medians.values()) >= 0.0


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec("4D", 32, 2, (4, 8, 12)),
        ModelSpec("3D", 32, 4, (3, 8, 8), in_channels=3, num_classes=5, learn_sigma=False),
        ModelSpec("3D", 32, 2, (1, 8, 8), patch_size=4, num_classes=5),
    ],
    ids=["video", "video of classes", "image"],
)
def test_naive_form_equals_the_model_and_costs_what_is_counted(spec):
    model = randomise(DiffusionTransformer(spec))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, spec.in_channels, *spec.input_size, generator=generator)
    t, labels = torch.tensor([3.0, 700.5]), torch.tensor([0, 4]) if spec.num_classes else None
    with torch.no_grad():
        assert relative_error(naive_forward(model, x, t, labels), model(x, t, labels)) <= 1e-5
        for forward, macs in ((naive_forward, naive_macs(spec)), (DiffusionTransformer.forward, forward_macs(spec))):
            # In plain products: whether PyTorch counts its fused kernels depends on its version.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                forward(model, x, t, labels)
            assert counter.get_total_flops() == 2 * 2 * macs  # two clips; a multiply-add is two operations


def test_naive_cost_of_latte_is_that_of_the_public_code():
    assert naive_macs(build_spec("Latte-XL/2")) / 1e9 == pytest.approx(1892.9, abs=0.1)


def test_naive_form_is_of_dense_models_only():
    with pytest.raises(ValueError, match="such as 6D, got layout '1P 1"):
        naive_forward(DiffusionTransformer(SPARSE), torch.zeros(1, 4, 4, 8, 12), torch.zeros(1))


def test_plan_has_every_combination_once_with_its_dense_case_before_it():
    grids = [(2, 2, 3), (1, 1, 1)]
    presets = ["SparseLatte-XS/2", "Latte-XS/2"]
    cases = plan_cases(presets, grids=grids, batches=[1, 2], dtypes=list(DTYPES), against_naive=True)
    assert len(cases) == len(set(cases)) == (2 + len(grids)) * 2 * 2
    for index, case in enumerate(cases):
        assert case.dense in cases[: index + 1]
        assert (case.dense.batch, case.dense.dtype, case.dense.naive) == (case.batch, case.dtype, False)
    assert {case.grid for case in cases if case.spec.is_sparse} == {Grid(*grid) for grid in grids}
    assert len({case.spec for case in cases}) == 2  # grids share one model


def test_presets_that_differ_in_their_grid_share_the_dense_case(monkeypatch):
    monkeypatch.setitem(PRESETS, "SparseLatte-XS/2-few", replace(SPARSE, sparse_grid=(1, 1, 1)))
    cases = plan_cases(["SparseLatte-XS/2-few", "SparseLatte-XS/2"])
    assert [case.preset for case in cases] == ["Latte-XS/2", "SparseLatte-XS/2-few", "SparseLatte-XS/2"]
    assert [case.grid for case in cases] == [None, Grid(1, 1, 1), Grid(2, 2, 3)]


def test_default_plan_has_the_preset_s_own_grid_and_other_layouts_have_those_given():
    own = PRESETS["SparseLatte-XL/2"].sparse_grid
    assert [case.grid for case in plan_cases(["SparseLatte-XL/2"])] == [None, own]
    layouts = ["6D", "1P 1(1M2S1R1D)"]
    dense, sparse = plan_cases(["Latte-XS/2"], layouts=layouts, grids=[(2, 2, 2)], input_size=(2, 8, 8))
    assert (dense.spec.layout, sparse.spec.layout) == tuple(layouts)
    assert dense.spec.input_size == sparse.spec.input_size == (2, 8, 8)
    assert plan_cases(["SparseLatte-XS/2"], layouts=["6D"]) == plan_cases(["Latte-XS/2"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"presets": ["Late-XS/2"]}, "no preset 'Late-XS/2'"),
        ({"presets": ["Latte-XS/2"], "dtypes": ["int8"]}, "no dtype 'int8'; accepted are float32, bfloat16"),
        ({"presets": ["Latte-XS/2"], "batches": [0]}, "at least one clip"),
        ({"presets": ["Latte-XS/2"], "layouts": ["1P 1(1M2S1R1D)"]}, "no sparse grid: give grids"),
        ({"presets": ["SparseLatte-XS/2"], "grids": [(2, 2, 2), (3, 2, 2)]}, "t = 3 does not divide the 4 frames"),
        ({"presets": ["Latte-XS/2"], "input_size": (4, 8, 9)}, "cannot be cut into patches"),
    ],
)
def test_plan_of_what_cannot_be(arguments, reason):
    with pytest.raises((KeyError, ValueError), match=reason):
        plan_cases(**arguments)


def test_ratios_are_to_the_dense_case_of_the_same_batch_and_dtype():
    cases = plan_cases(["SparseLatte-XS/2"], batches=[1, 2], dtypes=list(DTYPES), against_naive=True)
    # Every dense case has its own seconds; sparse ones take a quarter of their own dense one, naive ones twice as long.
    dense_seconds = {case: 2.0**power for power, case in enumerate(case for case in cases if case.dense == case)}
    factor = {case: 2.0 if case.naive else 0.25 if case.spec.is_sparse else 1.0 for case in cases}
    median = {case: factor[case] * dense_seconds[case.dense] for case in cases}
    seconds = {case: (9 * value, value, value / 2) for case, value in median.items()}
    peaks = {case: int(1000 * value) for case, value in median.items()}
    rates = {"float32": {64: 5.0, 128: 7.0}, "bfloat16": {64: 11.0, 128: 3.0}}
    results = compare(seconds, dict.fromkeys(cases, 8), peaks, rates)
    assert [result.case for result in results] == cases
    for result in results:
        case = result.case
        assert result.seconds == median[case] and result.spread == 8.5
        assert result.measured_ratio == result.memory_ratio == factor[case]
        assert result.counted_ratio == case.macs / case.dense.macs
        assert result.matmul_share == case.macs / median[case] / {"float32": 7.0, "bfloat16": 11.0}[case.dtype]
    naive = next(result.case for result in results if result.case.naive)
    assert naive.macs == naive_macs(SPARSE.dense()) * naive.batch
    sparse = next(result.case for result in results if result.case.spec.is_sparse)
    assert sparse.macs == forward_macs(SPARSE, grid=sparse.grid) * sparse.batch


@pytest.mark.parametrize(("excess", "marked"), [(0.14, False), (-0.14, False), (0.16, True), (-0.16, True)])
def test_a_measured_ratio_far_from_the_counted_one_is_marked(excess, marked):
    dense, sparse = plan_cases(["SparseLatte-XS/2"])
    time = (1 + excess) * sparse.macs / dense.macs
    seconds = {dense: (1.0,), sparse: (time,)}
    unmeasured = dict.fromkeys(seconds)
    first, second = compare(seconds, dict.fromkeys(seconds, 8), unmeasured, {"float32": {64: 1.0}})
    assert not first.differs and second.differs is marked
    assert second.excess == pytest.approx(excess)
    assert second.memory_ratio is None


def test_measuring_takes_all_cases_and_matmuls_in_each_turn(monkeypatch):
    orders, real = [], time_turn
    monkeypatch.setattr(benchmark, "time_turn", lambda candidates: orders.append(list(candidates)) or real(candidates))
    cases = plan_cases(["SparseLatte-XS/2"], batches=[1, 2], dtypes=list(DTYPES), against_naive=True)
    measured = measure_cases(cases, repeats=3, warmup=1, matmul_sizes=(32, 64))
    matmuls = [(dtype, size) for dtype in DTYPES for size in (32, 64)]
    assert orders == [[*cases, *matmuls]] * 4
    assert [result.case for result in measured.results] == cases
    assert all(len(result.turns) == 3 and min(result.turns) > 0 for result in measured.results)
    assert {dtype: set(rates) for dtype, rates in measured.matmul_rates.items()} == {key: {32, 64} for key in DTYPES}
    weights = {(result.case.spec.is_sparse, result.case.dtype): result.weight_bytes for result in measured.results}
    assert weights[False, "float32"] == 2 * weights[False, "bfloat16"]


def test_measuring_of_class_conditional_images():
    spec = ModelSpec("2D", 32, 2, (1, 8, 8), num_classes=3)
    (result,) = measure_cases([Case("DiT-XS/2", spec, None, 5, "float32")], repeats=1, warmup=0, matmul_sizes=[32]).results
    assert result.measured_ratio == result.counted_ratio == 1.0 and not result.differs


def test_measuring_needs_the_dense_case_and_a_turn():
    dense, sparse = plan_cases(["SparseLatte-XS/2"])
    with pytest.raises(ValueError, match="this one is missing: Case"):
        measure_cases([sparse])
    with pytest.raises(ValueError, match="repeats=0"):
        measure_cases([dense, sparse], repeats=0)


def test_random_model_has_no_parameter_that_is_zero():
    model = build_random_model(SPARSE, torch.bfloat16, CPU)
    assert all(parameter.any() and parameter.dtype == torch.bfloat16 for parameter in model.parameters())


PEAKS = """
import torch
from sparsevid.benchmark.model import peak_memory

def one_by_one():
    for _ in range(2):
        torch.ones(16 * 2**20)

def together():
    return torch.ones(16 * 2**20), torch.ones(16 * 2**20)

for call in (one_by_one, together, one_by_one, together, lambda: None):
    print(peak_memory(call, torch.device("cpu")))
"""


@pytest.mark.slow
def test_peak_memory_is_what_the_call_needs_at_once():
    """Twice 64 MB one after the other are 64 MB, together 128; what was freed before does not count.

    In a process of its own, as benchmarks run: what other tests leave to the C library's allocator moves the peak.
    """
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    if "None" in done.stdout:
        pytest.skip("this system does not tell the peak of the resident set")
    peaks = [int(line) / MEGABYTE for line in done.stdout.split()]
    assert peaks == pytest.approx([64, 128, 64, 128, 0], abs=8)


@pytest.mark.gpu
def test_measuring_on_the_gpu():
    cases = plan_cases(["SparseLatte-XS/2"], dtypes=list(DTYPES), against_naive=True)
    measured = measure_cases(cases, repeats=2, device="cuda", matmul_sizes=[256])
    assert all(result.peak_bytes > 0 for result in measured.results)
