"""The plan of the sampling benchmark, what is made of its seconds, and its parts on tiny models. No test looks at the clock."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKL
from torch._dynamo.utils import counters

from sparsevid.autoencoder.kl import KLAutoencoder
from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.benchmark import sampling as benchmark
from sparsevid.benchmark.sampling import (
    SamplingRun,
    compare_sampling,
    measure_sampling,
    open_autoencoder,
    random_pipelines,
    warm_turns,
)
from sparsevid.benchmark.sampling_cases import PRODUCT_DENSE, PRODUCT_SPARSE, plan_sampling, product_dense
from sparsevid.benchmark.sampling_report import SAMPLING_COLUMNS, sampling_as_json, sampling_lines, sampling_rows
from sparsevid.benchmark.timing import Turns, time_turn
from sparsevid.diffusion.samplers import sampler_times
from sparsevid.generation import networks
from sparsevid.generation.pipeline import DTYPES
from sparsevid.models.compiled import with_compiled_layers
from sparsevid.models.presets import PRESETS
from sparsevid.models.text import PreparedText
from sparsevid.sparsity.cost import sampling_macs
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.videos.check import clip_file_is_whole

CPU = torch.device("cpu")
SPARSE = ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (4, 16, 16), sparse_grid=(1, 2, 2))
SMALL = {"repeats": 1, "matmul_sizes": [32]}
RATES = {"float32": {64: 7.0, 128: 5.0}}


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch):
    """A dense and a sparse preset of 32 channels, and one with classes."""
    monkeypatch.setitem(PRESETS, "SparseLatte-XS/2", SPARSE)
    monkeypatch.setitem(PRESETS, "Latte-XS/2", SPARSE.dense())
    classes = replace(SPARSE, input_size=(1, 16, 16), num_classes=3)
    monkeypatch.setitem(PRESETS, "SparseDiT-XS/2", classes)


def plan(**options):
    return plan_sampling(["SparseLatte-XS/2"], **options)


def test_median_and_spread_of_turns():
    class Some(Turns):
        turns = (4.0, 1.0, 2.0)

    assert Some().median == 2.0 and Some().spread == 1.5


def test_plan_has_every_combination_once_with_its_dense_case_before_it():
    options = {"samplers": ["ddim", "heun"], "steps": [2, 4], "batches": [1, 3], "dtypes": ["float32", "bfloat16"]}
    cases = plan_sampling(["SparseLatte-XS/2", "Latte-XS/2"], **options, compiled=[False, True])
    assert len(cases) == len(set(cases)) == 2 * 2 * 2 * 2 * 2 * 2
    for index, case in enumerate(cases):
        assert case.dense in cases[: index + 1]
        assert case.network.spec.learn_sigma is (case.sampler == "ddim")
        assert case.preset == ("SparseLatte-XS/2" if case.network.spec.is_sparse else "Latte-XS/2")
    assert len({case.network for case in cases}) == 2 * 2 * 2 * 2  # steps and batches share a model


def test_calls_are_those_of_the_sampler_by_stage():
    for sampler, steps in (("ddim", 9), ("euler", 5), ("heun", 4)):
        dense, sparse = plan(samplers=[sampler], steps=[steps])
        times = sampler_times(sampler, steps)
        schedule = sparse.network.schedule
        assert [u for calls in sparse.calls.values() for u in calls] == times
        assert all(schedule.grid(u) == call.grid for call, calls in sparse.calls.items() for u in calls)
        assert {call.grid: len(calls) for call, calls in dense.calls.items()} == {None: len(times)}
        cost = sampling_macs(sparse.network.spec, schedule, times)
        assert sparse.macs == pytest.approx(cost.mean_macs * len(times))
        assert dense.macs == pytest.approx(cost.dense_macs * len(times))


def test_product_is_of_few_sparse_steps_and_many_dense_ones():
    cases = plan(steps=[2], product=True, batches=[1, 2])
    few = [case for case in cases if (case.sampler, case.steps) == PRODUCT_SPARSE]
    assert len(cases) == 8 and len(few) == 2
    for case in few:
        assert case.extrapolated and case.network.spec.is_sparse and not case.network.spec.learn_sigma
        many = product_dense(case)
        assert many in cases and many.extrapolated and (many.sampler, many.steps) == PRODUCT_DENSE
        assert many.network.spec == replace(SPARSE.dense()) and many.batch == case.batch
    assert not any(case.extrapolated for case in cases if case.sampler == "ddim")
    assert len(plan_sampling(["Latte-XS/2"], product=True)) == 1  # nothing sparse to multiply with


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtypes": ["int8"]}, "no dtype 'int8'"),
        ({"batches": [0]}, "at least one clip"),
        ({"samplers": ["magic"]}, "no sampler 'magic'"),
        ({"steps": [0]}, "1 to 1000 steps, got 0"),
        ({"input_size": (4, 16, 17)}, "cannot be cut into patches"),
    ],
)
def test_plan_of_what_cannot_be(options, reason):
    with pytest.raises((KeyError, ValueError), match=reason):
        plan(**options)


def test_extrapolated_seconds_are_calls_added_up_in_each_turn():
    cases = plan(steps=[9], extrapolate=True)
    dense, sparse = cases
    (whole,) = dense.calls
    stages = list(sparse.calls)
    turns = [{whole: factor * 10.0} | {call: factor * 2.0**i for i, call in enumerate(stages)} for factor in (1.0, 3.0, 2.0)]
    first, second = compare_sampling(cases, turns, RATES).results
    expected = sum(2.0**i * len(times) for i, times in enumerate(sparse.calls.values()))
    assert second.turns == (expected, 3 * expected, 2 * expected) and second.latent_seconds == 2 * expected
    assert second.spread == 1.0
    assert first.latent_seconds == 2 * 9 * 10.0 and first.latent_speed is None
    assert second.latent_speed == pytest.approx(90 / expected)
    assert second.counted_speed == dense.macs / sparse.macs and first.counted_speed == 1.0
    assert second.matmul_share == pytest.approx(sparse.macs / (2 * expected) / 7.0)
    assert second.clip_seconds == second.latent_seconds and second.decode_seconds == 0.0


def test_ratios_are_medians_of_those_within_a_turn():
    """The machine is slower by ten in the last turn, and only one of two parts meets that in full."""
    cases = plan(steps=[2])
    seconds = {"dense": (4.0, 12.0, 40.0), "sparse": (2.0, 3.0, 20.0)}
    turns = [
        {(case, part): float(dense if case is cases[0] else sparse) for case in cases for part in ("model", "decode", "write")}
        for dense, sparse in zip(*seconds.values(), strict=True)
    ]
    _, sparse = compare_sampling(cases, turns, RATES).results
    assert sparse.dense.latent_seconds / sparse.latent_seconds == 4.0
    assert sparse.latent_speed == sparse.clip_speed == 2.0
    many = plan(steps=[2], product=True)
    few = next(case for case in many if (case.sampler, case.steps) == PRODUCT_SPARSE)
    turns = [
        {(case, "model"): 1.0 for case in many}
        | dict.fromkeys(product_dense(few).calls, dense)
        | dict.fromkeys(few.calls, sparse)
        for dense, sparse in zip(*seconds.values(), strict=True)
    ]
    (product,) = compare_sampling(many, turns, RATES).products
    assert product.speed == pytest.approx(2.0 * PRODUCT_DENSE[1] / PRODUCT_SPARSE[1])


def test_parts_of_a_full_run_add_up_to_the_clip():
    cases = plan(steps=[3], batches=[4])
    turn = {(case, part): seconds for case in cases for part, seconds in (("model", 8.0), ("decode", 4.0), ("write", 2.0))}
    turn |= {(cases[0], "model"): 24.0}
    _, sparse = compare_sampling(cases, [turn], RATES).results
    assert (sparse.latent_seconds, sparse.decode_seconds, sparse.write_seconds) == (2.0, 1.0, 0.5)
    assert sparse.clip_seconds == 3.5 and sparse.latent_speed == 3.0 and sparse.clip_speed == pytest.approx(7.5 / 3.5)
    cells = dict(zip(SAMPLING_COLUMNS, sampling_rows(compare_sampling(cases, [turn], RATES))[1], strict=True))
    assert cells["dense / this"] == "3.00×" and cells["clips/s"] == "0.286" and cells["measured"] == "full run"
    assert cells["model, decode, write"] == "57.1% 28.6% 14.3%"


def test_product_is_the_ratio_of_extrapolated_seconds_and_named_so():
    cases = plan(steps=[2], product=True)
    few = next(case for case in cases if (case.sampler, case.steps) == PRODUCT_SPARSE)
    turn = {(case, "model"): 1.0 for case in cases}
    turn |= dict.fromkeys(few.calls, 0.5) | dict.fromkeys(product_dense(few).calls, 1.5)
    measured = compare_sampling(cases, [turn], RATES)
    (product,) = measured.products
    assert product.speed == pytest.approx(1.5 * PRODUCT_DENSE[1] / (0.5 * PRODUCT_SPARSE[1]))
    cells = dict(zip(SAMPLING_COLUMNS, sampling_rows(measured)[-1], strict=True))
    assert cells["dense / this"] == "150.00×" and cells["measured"] == "product, extrapolated"
    assert any("product, extrapolated" in line and "150.0×" in line for line in sampling_lines(measured, "none"))
    assert sampling_as_json({}, measured)["products"][0]["speed"] == product.speed


@pytest.mark.parametrize(("sampler", "extrapolated"), [("ddim", False), ("ddpm", True), ("heun", False), ("euler", True)])
def test_measuring_takes_every_part_in_each_turn(monkeypatch, sampler, extrapolated):
    orders, real = [], time_turn
    monkeypatch.setattr(benchmark, "time_turn", lambda candidates: orders.append(list(candidates)) or real(candidates))
    cases = plan(samplers=[sampler], steps=[4], batches=[2], extrapolate=extrapolated)
    measured = measure_sampling(cases, open_autoencoder("linear", 4), repeats=2, matmul_sizes=[32])
    calls = [call for case in cases for call in case.calls]
    ends = [(case, part) for case in cases for part in ("decode", "write")]
    warm, *turns = orders
    assert warm == [*calls, *ends, ("float32", 32)]
    timed = calls if extrapolated else [(case, "model") for case in cases]
    assert turns == [[*timed, *ends, ("float32", 32)]] * 2
    assert [result.case for result in measured.results] == cases
    assert all(len(result.turns) == 2 and result.clip_seconds > result.latent_seconds > 0 for result in measured.results)
    dense, sparse = measured.results
    assert sparse.dense == dense and sparse.latent_speed > 0


def test_calls_on_a_gpu_are_warm_after_two():
    """The second records a CUDA graph, of a compiled network and of any other."""
    cases = plan(steps=[2], compiled=[False, True])
    single = {call: len for case in cases for call in case.calls}
    first, again = warm_turns(single, {"decode": len}, torch.device("cuda"))
    assert set(first) == {*single, "decode"} and set(again) == set(single)
    assert warm_turns(single, {"decode": len}, CPU) == [first]


def graphs_of_turns(monkeypatch, cases: list) -> list[int]:
    """How many graphs were compiled after each turn, those that warm up among them."""
    torch.compiler.reset()
    counters["stats"].clear()
    counts = []

    def counted(candidates):
        seconds = time_turn(candidates)
        counts.append(counters["stats"]["unique_graphs"])
        return seconds

    monkeypatch.setattr(benchmark, "time_turn", counted)
    measure_sampling(cases, None, repeats=2, matmul_sizes=[32])
    torch.compiler.reset()
    return counts


@pytest.mark.parametrize("extrapolate", [False, True])
def test_nothing_is_compiled_in_timed_turns(monkeypatch, extrapolate):
    """Dynamo alone decides what is compiled again; what a backend makes of a graph is its own matter."""
    monkeypatch.setattr(networks, "with_compiled_layers", partial(with_compiled_layers, backend="eager"))
    cases = plan_sampling(["SparseDiT-XS/2"], steps=[2], compiled=[True], extrapolate=extrapolate)
    warm, *timed = graphs_of_turns(monkeypatch, cases)
    assert warm > 0 and timed == [warm, warm]


@pytest.mark.slow
def test_nothing_is_compiled_by_inductor_in_timed_turns(monkeypatch):
    warm, *timed = graphs_of_turns(monkeypatch, plan(steps=[2], dtypes=["bfloat16"], compiled=[True]))
    assert warm > 0 and timed == [warm, warm]


def test_a_run_goes_from_noise_to_files(tmp_path):
    case = plan_sampling(["SparseDiT-XS/2"], samplers=["dpm++"], steps=[3], batches=[2])[1]
    (pipeline,) = random_pipelines([case.network], open_autoencoder("linear", 4), CPU).values()
    run = SamplingRun(case, pipeline)
    run.denoise()
    run.decode()
    run.write(tmp_path, "npz")
    assert run.clips.shape == (2, 3, 1, 128, 128)
    assert all(clip_file_is_whole(tmp_path / f"{i:06d}.npz", "npz", 1, 128, 128) for i in range(2))
    assert all(call().shape[0] == 2 for call in run.single_calls().values())


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_single_calls_are_in_their_stage(sampler):
    case = plan(samplers=[sampler], steps=[7])[1]
    (pipeline,) = random_pipelines([case.network], open_autoencoder("linear", 4), CPU).values()
    seen = []
    pipeline.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(Grid(*kwargs["grid"])), with_kwargs=True)
    for call, timed in SamplingRun(case, pipeline).single_calls().items():
        timed()
        assert seen[-1] == call.grid
    assert len(set(seen)) == len(case.calls) > 1


def test_a_model_of_text_is_timed_on_drawn_prompts():
    """Prepared ones, as samples hear them, in single calls and from noise to latents."""
    case = plan(samplers=["ddim"], steps=[2], batches=[2])[1]
    case = replace(case, network=case.network._replace(spec=replace(SPARSE, text_channels=6, text_tokens=5)))
    (pipeline,) = random_pipelines([case.network], open_autoencoder("linear", 4), CPU).values()
    heard = []
    pipeline.model.register_forward_pre_hook(lambda module, args, given: heard.append(given["text"]), with_kwargs=True)
    run = SamplingRun(case, pipeline)
    shapes = {call().shape for call in run.single_calls().values()}
    run.denoise()
    assert shapes == {(2, 8, 4, 16, 16)} and run.latents.shape == (2, 4, 4, 16, 16)
    assert len(heard) == len(case.calls) + 2 and {type(each) for each in heard} == {PreparedText}


def test_pipelines_of_one_spec_share_their_weights():
    cases = plan(steps=[2], batches=[1, 2], compiled=[False, True])
    pipelines = random_pipelines([case.network for case in cases], open_autoencoder("linear", 4), CPU)
    assert len(pipelines) == 4 and len({id(pipeline.model) for pipeline in pipelines.values()}) == 2
    assert all(pipeline.compiled is network.compiled for network, pipeline in pipelines.items())


def test_a_kl_autoencoder_decodes_in_the_type_of_each_network():
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    cases = plan(steps=[2], dtypes=["bfloat16", "float32"])
    pipelines = random_pipelines([case.network for case in cases], KLAutoencoder(vae, "here"), CPU)
    for network, pipeline in pipelines.items():
        assert pipeline.autoencoder.vae.dtype == DTYPES[network.dtype] == pipeline.dtype
    assert len({id(pipeline.autoencoder) for pipeline in pipelines.values()}) == 2 and vae.dtype == torch.float32


def test_without_an_autoencoder_only_latents_are_timed():
    measured = measure_sampling(plan(steps=[2]), None, **SMALL)
    assert all(not result.decode_turns and not result.write_turns for result in measured.results)
    cells = dict(zip(SAMPLING_COLUMNS, sampling_rows(measured)[1], strict=True))
    assert cells["decode s/clip"] == cells["write s/clip"] == cells["dense / this, end to end"] == "–"


def test_autoencoder_by_folder_or_name(tmp_path):
    own = LinearAutoencoder.fit(torch.randint(256, (2, 3, 2, 32, 32), dtype=torch.uint8), channels=6)
    own.save(tmp_path / "checkpoint" / "autoencoder")
    assert open_autoencoder("none", 4) is None and open_autoencoder("linear", 4).channels == 4
    for folder in (tmp_path / "checkpoint", tmp_path / "checkpoint" / "autoencoder"):
        assert open_autoencoder(str(folder), 4).channels == 6
    with pytest.raises(FileNotFoundError, match="not a saved autoencoder"):
        open_autoencoder(str(tmp_path), 4)
    with pytest.raises(ValueError, match="4 channels, the autoencoder linear of 6"):
        measure_sampling(plan(), own, **SMALL)


def test_measuring_needs_a_turn_and_a_format():
    with pytest.raises(ValueError, match="repeats=0"):
        measure_sampling(plan(), None, repeats=0)
    with pytest.raises(ValueError, match="no clip format 'avi'"):
        measure_sampling(plan(), None, format="avi")


@pytest.mark.slow
def test_measuring_of_compiled_bfloat16():
    cases = plan(steps=[2], dtypes=["bfloat16"], compiled=[False, True])
    measured = measure_sampling(cases, None, **SMALL)
    assert [result.case.network.compiled for result in measured.results] == [False, False, True, True]


@pytest.mark.gpu
def test_measuring_on_the_gpu():
    options = {"dtypes": ["bfloat16"], "compiled": [False, True], "batches": [1, 4], "extrapolate": True, "product": True}
    cases = plan(steps=[2], **options) + plan(steps=[2], samplers=["heun"], dtypes=["bfloat16"], compiled=[True])
    measured = measure_sampling(cases, open_autoencoder("linear", 4), device="cuda", **SMALL)
    assert len(measured.products) == 4 and all(result.matmul_share > 0 for result in measured.results)
