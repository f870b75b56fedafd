"""Step reuse: sparse layers that run at every n-th call of the model only."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from parity import disturbed, randomise

from sparsevid.diffusion.samplers import TimedModel, euler
from sparsevid.diffusion.wrappers import with_guidance, with_token_schedule
from sparsevid.models.compiled import with_compiled_layers
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import parse_saving, saved
from sparsevid.savings.base import SavingError
from sparsevid.sparsity.schedule import constant_schedule, paper_schedule
from sparsevid.sparsity.spec import ModelSpec

SPARSE = ModelSpec("1P 2(1M2S1R1D) 1D", 24, 2, (4, 8, 8), sparse_grid=(2, 2, 2), learn_sigma=False)
CLASSES = replace(SPARSE, num_classes=5)
VARIANTS = {
    "paper": SPARSE,
    "residual": replace(SPARSE, residual_upsampling=True),
    "public": replace(SPARSE, transition_positions=False),
    "two M": replace(SPARSE, layout="1P 1(2M2S1R1D) 5D"),
}
GENERATOR = torch.Generator().manual_seed(0)
X, NEXT = (torch.randn(2, 4, 4, 8, 8, generator=GENERATOR) for _ in range(2))
LATE, EARLY = torch.tensor([700.0, 700.0]), torch.tensor([650.0, 650.0])


def with_steps(model, every: int) -> TimedModel:
    """The model, of which sparse layers run at every n-th call."""
    return saved(model, parse_saving(f"steps:every={every}"))


def count_calls(model: DiffusionTransformer) -> Counter:
    """How often each kind of layer runs from now on."""
    calls = Counter()
    for kind, block in zip(model.kinds, model.blocks, strict=True):
        block.register_forward_hook(lambda *_, kind=kind: calls.update(kind))
    return calls


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)
def test_an_unchanged_input_gives_the_same_output(spec):
    model = randomise(DiffusionTransformer(spec))
    expected = model(X, LATE)
    reusing = with_steps(model, 3)
    for _ in range(5):
        assert torch.equal(reusing(X, LATE), expected)


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)
def test_a_reuse_is_not_a_full_call_and_a_refresh_is(spec):
    model = randomise(DiffusionTransformer(spec))
    reusing = with_steps(model, 2)
    reusing(X, LATE)
    assert not torch.allclose(reusing(NEXT, EARLY), model(NEXT, EARLY), atol=1e-3)
    assert torch.equal(reusing(NEXT, EARLY), model(NEXT, EARLY))


def test_at_every_call_is_no_reuse():
    model = randomise(DiffusionTransformer(SPARSE))
    schedule = paper_schedule(SPARSE.dense_grid(), 2, 0.3, 0.9)
    plain, each = (with_token_schedule(made, schedule) for made in (model, with_steps(model, 1)))
    assert torch.equal(euler(each, X, 6), euler(plain, X, 6))


def test_m_and_s_run_at_a_refresh_only():
    model = randomise(DiffusionTransformer(SPARSE))
    calls, reusing = count_calls(model), with_steps(model, 3)
    euler(with_token_schedule(reusing, constant_schedule((2, 2, 2))), X, 7)
    assert calls == {"P": 7, "M": 3 * 2, "S": 3 * 4, "R": 7 * 2, "D": 7 * 3}  # refreshed at calls 1, 4, 7


def test_a_new_stage_is_a_refresh():
    model = randomise(DiffusionTransformer(SPARSE))
    schedule = paper_schedule(SPARSE.dense_grid(), 2, 0.3, 0.9)
    calls, seen = count_calls(model), []
    model.register_forward_pre_hook(lambda _, args, cond: seen.append([cond["grid"], calls["M"]]), with_kwargs=True)
    model.register_forward_hook(lambda *_: seen[-1].append(calls["M"]))
    euler(with_token_schedule(with_steps(model, 100), schedule), X, 20)
    grids = [grid for grid, *_ in seen]
    assert len(set(grids)) == len(schedule.stages) > 1
    assert [after > before for _, before, after in seen] == [i == 0 or grids[i] != grids[i - 1] for i in range(20)]


def test_another_batch_is_a_refresh_and_the_interval_of_guidance_one_of_its_own_half():
    model = randomise(DiffusionTransformer(CLASSES))
    labels, clips, times = torch.tensor([1, 4]), [], (1.0, 0.9, 0.8, 0.5, 0.3, 0.2)
    first_sparse = next(block for block in model.blocks if block.place.kind == "M")
    first_sparse.register_forward_hook(lambda _, args, out: clips.append(len(out)))
    guided = with_guidance(with_steps(model, 100), 2.0, null_label=5, interval=(0.3, 0.8))
    alone, null = with_steps(model, 100), with_steps(model, 100)
    for u, computed in zip(times, (2, 0, 2, 0, 0, 0), strict=True):
        t = torch.full((2,), 999 * u)
        clips.clear()
        found = guided(X, t, labels=labels)
        assert sum(clips) == computed
        expected = alone(X, t, labels=labels)
        if 0.3 <= u <= 0.8:
            expected = torch.lerp(null(X, t, labels=torch.full_like(labels, 5)), expected, 2.0)
        torch.testing.assert_close(found, expected)
    clips.clear()
    t = torch.full((1,), 100.0)
    assert torch.equal(guided(X[:1], t, labels=labels[:1]), model(X[:1], t, labels[:1])) and clips == [1, 1]


def test_each_wrapper_remembers_its_own_calls():
    model = randomise(DiffusionTransformer(SPARSE))
    first, second = with_steps(model, 4), with_steps(model, 4)
    first(X, LATE)
    assert torch.equal(second(NEXT, EARLY), model(NEXT, EARLY))


def test_the_error_is_finite_and_grows_with_the_calls_between_refreshes():
    """On a model whose output is a smooth function of time, as a trained one's: nearly all of it is at its initialisation."""
    for residual in (False, True):
        model = disturbed(replace(SPARSE, residual_upsampling=residual), size=0.05)
        schedule = constant_schedule((2, 2, 2))
        outs = {every: euler(with_token_schedule(with_steps(model, every), schedule), X, 16) for every in (1, 2, 4, 8, 16)}
        errors = [((out - outs[1]).square().mean() / outs[1].square().mean()).sqrt().item() for out in outs.values()]
        print(f"residual upsampling {residual}: relative error", {n: f"{e:.2e}" for n, e in zip(outs, errors, strict=True)})
        assert errors[0] == 0.0 < errors[1] and errors == sorted(errors) and errors[-1] < 0.5


def test_compiled_layers_have_no_graph_more_for_a_reuse():
    torch.compiler.reset()
    model = randomise(DiffusionTransformer(replace(SPARSE, layout="1P 1(1M1S1R1D)", residual_upsampling=True)))
    graphs, counts = [], []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled, eager = with_steps(with_compiled_layers(model, backend=count), 3), with_steps(model, 3)
    for step in range(7):
        x, t = X + 0.1 * step, LATE - 10 * step
        torch.testing.assert_close(compiled(x, t, grid=(2, 2, 2)), eager(x, t, grid=(2, 2, 2)))
        counts.append(len(graphs))
    assert set(counts) == {len(model.blocks)}
    torch.compiler.reset()


def test_what_cannot_be_reused_is_refused():
    with pytest.raises(SavingError, match="saving steps: every = 0; it is at least 1"):
        parse_saving("steps:every=0")
    with pytest.raises(SavingError, match="the layout '12D' has no sparse layers whose output could be reused"):
        with_steps(DiffusionTransformer(SPARSE.dense()), 2)
    for others in ({"images": 2}, {"features": [2]}):
        with pytest.raises(ValueError, match="neither with `images` nor with `features`"):
            with_steps(randomise(DiffusionTransformer(SPARSE)), 2)(X, LATE, **others)
