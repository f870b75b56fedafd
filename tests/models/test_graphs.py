"""Forwards that are recorded once and replayed: which calls share a graph, what they read and write, when they are dropped.

What records is handed over: on the CPU a function that is called again and writes to the same memory, as a CUDA graph does.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity import randomise
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsevid.diffusion.samplers import DIFFUSION_SAMPLERS, SAMPLERS, sampler_times
from sparsevid.diffusion.wrappers import guidance_acts, with_guidance, with_token_schedule
from sparsevid.models import graphs
from sparsevid.models.compiled import with_compiled_layers
from sparsevid.models.graphs import Captured, GraphedModel
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.schedule import paper_schedule, stage_at
from sparsevid.sparsity.spec import ModelSpec

SPARSE = ModelSpec("1P 2(1M2S1R1D) 1D", 24, 2, (4, 8, 8), sparse_grid=(2, 2, 2), num_classes=5, learn_sigma=False)
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 4, 4, 8, 8, generator=GENERATOR)
T, LABELS = torch.tensor([700.0, 700.0]), torch.tensor([1, 3])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


class Recorder:
    """Records on the CPU: a replay calls the function again, and writes into the memory of the first output."""

    def __init__(self) -> None:
        self.replays, self.pools = 0, []

    def __call__(self, function: Callable[[], Any], device: torch.device, pool: Any) -> Captured:
        output = pytree.tree_map_only(Tensor, Tensor.clone, function())
        self.pools.append(pool)

        def replay() -> None:
            self.replays += 1
            for own, new in zip(pytree.tree_leaves(output), pytree.tree_leaves(function()), strict=True):
                own.copy_(new)

        for leaf in pytree.tree_leaves(output):
            leaf.fill_(float("nan"))  # recording computes nothing
        return Captured(output, replay, pool or "pool")


def kinds_of_calls(sampler: str, spec: ModelSpec, steps: int = 9) -> set[tuple[int, bool]]:
    """Stages of the walk, with guidance or without."""
    schedule = paper_schedule(spec.dense_grid(), 2, 0.3, 0.8)
    return {(stage_at(schedule, u), guidance_acts((0.2, 0.8), u)) for u in sampler_times(sampler, steps)}


def walk(model, sampler: str, spec: ModelSpec, steps: int = 9) -> Tensor:
    """Samples through all stages, with guidance inside an interval."""
    schedule = paper_schedule(spec.dense_grid(), 2, 0.3, 0.8)
    guided = with_guidance(with_token_schedule(model, schedule), 2.0, spec.num_classes, interval=(0.2, 0.8))
    generator = torch.Generator().manual_seed(1)
    noise = {"noise": lambda: torch.randn(X.shape, generator=generator)} if sampler in DIFFUSION_SAMPLERS else {}
    return SAMPLERS[sampler](guided, X, steps, labels=LABELS, **noise)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_are_those_without_graphs_and_later_batches_record_none(sampler):
    spec = replace(SPARSE, learn_sigma=sampler in DIFFUSION_SAMPLERS)
    model, recorder = randomise(DiffusionTransformer(spec)), Recorder()
    graphed, expected = GraphedModel(model, capture=recorder), walk(model, sampler, spec)
    assert torch.equal(walk(graphed, sampler, spec), expected)
    assert torch.equal(walk(graphed, sampler, spec), expected)
    count, before = len(graphed), recorder.replays
    assert torch.equal(walk(graphed, sampler, spec), expected)
    assert len(graphed) == count == len(kinds_of_calls(sampler, spec)) > 3
    assert recorder.replays - before == (17 if sampler == "heun" else 9)
    assert recorder.pools == [None] + ["pool"] * (count - 1)


def test_calls_share_a_graph_unless_other_kernels_run():
    model = randomise(DiffusionTransformer(SPARSE))
    graphed = GraphedModel(model, capture=Recorder())

    def twice(x=X, t=T, labels=LABELS, **options) -> int:
        for _ in range(2):
            graphed(x, t, labels=labels, **options)
        return len(graphed)

    assert [twice(), twice(X + 1, T - 100, LABELS + 1)] == [1, 1]
    assert [twice(grid=(2, 2, 2)), twice(grid=(1, 2, 2)), twice(grid=(1, 2, 2))] == [2, 3, 3]
    assert [twice(X[:1], T[:1], LABELS[:1]), twice(t=T.long()), twice(features=(2,))] == [4, 5, 6]
    assert [twice(features=(3,)), twice(features=(3,))] == [7, 7]


def test_the_first_call_records_nothing_and_an_output_is_never_written_again():
    model = randomise(DiffusionTransformer(SPARSE))
    graphed = GraphedModel(model, capture=Recorder())
    outputs = [(graphed(X + shift, T, labels=LABELS, features=(2,)), shift, len(graphed)) for shift in range(4)]
    assert [count for *_, count in outputs] == [0, 1, 1, 1]
    for found, shift, _ in outputs:
        expected = model(X + shift, T, LABELS, features=(2,))
        assert all(map(torch.equal, pytree.tree_leaves(found), pytree.tree_leaves(expected)))


def test_weights_that_change_are_seen():
    """In place by the graphs that are there; elsewhere, by new ones."""
    with torch.inference_mode(False):
        model = randomise(DiffusionTransformer(SPARSE))
    graphed = GraphedModel(model, capture=Recorder())
    call = lambda each: each(X, T, labels=LABELS)  # noqa: E731

    def check(expected_graphs: int) -> None:
        assert torch.equal(call(graphed), call(model)) and len(graphed) == expected_graphs

    check(0)
    check(1)
    with torch.inference_mode(False), torch.no_grad():
        model.final_layer.linear.bias += 1
    check(1)
    model.final_layer.linear.bias.data = torch.ones_like(model.final_layer.linear.bias)
    check(0)
    check(1)
    with torch.inference_mode(False):
        model.blocks[0].mlp.fc1 = nn.Linear(24, 96)
    check(0)
    check(1)
    model.load_state_dict(randomise(DiffusionTransformer(SPARSE), 7).state_dict(), assign=True)
    check(0)
    model.double()
    assert graphed(X.double(), T, labels=LABELS).dtype == torch.float64 and len(graphed) == 0


class WithTable(nn.Module):
    """Reads a table that a cache keeps, and may drop."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.cache = {}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:1] + self.cache.setdefault("table", torch.arange(3.0))[None]


def test_a_graph_keeps_what_it_reads_but_no_weight():
    model = WithTable()
    graphed = GraphedModel(model, capture=Recorder())
    for _ in range(2):
        graphed(torch.zeros(1, 3))
    assert len(graphed) == 1
    (graph,) = graphed._graphs.values()
    addresses = {storage.data_ptr() for storage in graph.tables}
    assert model.cache["table"].data_ptr() in addresses and model.weight.data_ptr() not in addresses


def test_the_graph_that_was_unused_longest_goes_first(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    graphed = GraphedModel(WithTable(), capture=Recorder())
    sizes = [1, 1, 2, 2, 1, 3, 3]  # 2 goes
    for size in sizes:
        assert torch.equal(graphed(torch.zeros(size, 3)), torch.arange(3.0).expand(size, 3))
    assert len(graphed) == 2
    recorder = graphed._capture
    before = recorder.replays
    graphed(torch.zeros(1, 3))
    graphed(torch.zeros(2, 3))
    assert recorder.replays == before + 1


def test_a_forward_that_cannot_be_recorded_is_called_and_logged(caplog):
    def refuse(function, device, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    model = randomise(DiffusionTransformer(SPARSE))
    graphed = GraphedModel(model, capture=refuse)
    for _ in range(4):
        assert torch.equal(graphed(X, T, labels=LABELS), model(X, T, LABELS))
    assert (
        len(graphed) == 0 and caplog.text.count("cannot be recorded as a CUDA graph; its kernels are launched one by one") == 1
    )


def test_what_the_model_refuses_is_refused():
    graphed = GraphedModel(randomise(DiffusionTransformer(SPARSE)), capture=Recorder())
    for _ in range(3):
        with pytest.raises(ValueError, match="latents are"):
            graphed(X[:, :3], T, labels=LABELS)


def test_gradients_are_those_of_the_model():
    with torch.inference_mode(False):
        graphed = GraphedModel(WithTable(), capture=Recorder())
        for _ in range(3):
            graphed(torch.ones(1, 3)).sum().backward()
    assert len(graphed) == 0 and graphed.model.weight.grad.sum() == 9


def test_compiled_layers_share_weights_and_leave_the_model_as_it_is():
    model = randomise(DiffusionTransformer(SPARSE))
    compiled = with_compiled_layers(model, backend="eager")
    assert {id(each) for each in compiled.parameters()} == {id(each) for each in model.parameters()}
    assert all(layer._compiled_call_impl is None for layer in model.blocks)
    assert all(layer._compiled_call_impl is not None for layer in compiled.blocks)
    model.final_layer.linear.bias.data = torch.full_like(model.final_layer.linear.bias, 3.0)
    torch.testing.assert_close(compiled(X, T, LABELS), model(X, T, LABELS))
    graphed = GraphedModel(model, compiled, capture=Recorder())
    for _ in range(3):
        assert torch.equal(graphed(X, T, labels=LABELS), compiled(X, T, LABELS))
    assert len(graphed) == 1
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampler", ["ddpm", "heun"])
def test_cuda_graphs_give_the_bits_of_launched_kernels(sampler, dtype):
    spec = replace(SPARSE, hidden_size=64, learn_sigma=sampler in DIFFUSION_SAMPLERS)
    model = randomise(DiffusionTransformer(spec)).cuda().to(dtype)

    def on_gpu(call):
        def called(x, t, labels, **options):
            return call(x.cuda().to(dtype), t.cuda(), labels=labels.cuda(), **options)

        return called

    def samples(call) -> Tensor:
        return walk(lambda *args, **options: on_gpu(call)(*args, **options).cpu().float(), sampler, spec)

    graphed, expected = GraphedModel(model), samples(model)
    for _ in range(3):
        assert torch.equal(samples(graphed), expected)
    assert len(graphed) == len(kinds_of_calls(sampler, spec))
