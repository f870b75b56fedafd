"""What the engine promises at every ZeRO stage and precision, checked by two ranks: started by `test_engine.py`.

Prints one line for each thing that was checked; an assertion that fails ends it.
"""

import copy
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import TrainConfig
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.distributed import (
    broadcast_object,
    check_ranks,
    init_process_group_if_launched,
    is_main,
    rank,
    shutdown,
    world_size,
)
from sparsevid.training.ema import EMA
from sparsevid.training.engine import Engine, Reader

PRECISIONS, STEPS, BATCH = ("float32", "bfloat16"), 20, 2


class Small(nn.Module):
    """A network with odd sizes, so that fragments end in the middle of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x)


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def data(step: int, rank: int) -> Tensor:
    return torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(100 * step + rank))


def settings(stage: int, precision: str) -> TrainConfig:
    return TrainConfig(zero_stage=stage, precision=precision, lr=1e-2, gradient_clipping=0.3, weight_decay=0.01)


def loss_of(model, x: Tensor) -> Tensor:
    return (model(x, torch.zeros(BATCH)).float() - 1.0).square().mean()


def plain_training(steps: int) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the same training in PyTorch alone: all ranks' samples in one batch."""
    model, losses, norms = small(), [], []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    for step in range(steps):
        shares = [loss_of(model, data(step, rank)) for rank in range(world_size())]
        loss = torch.stack(shares).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.3).item())
        optimizer.step()
        losses.append(shares[rank()].item())
    return losses, norms


def train(engine: Engine, first: int, last: int, ema: EMA | None = None) -> list[float]:
    losses = []
    for step in range(first, last):
        loss = loss_of(engine, data(step, rank()))
        losses.append(loss.item())
        assert engine.step(loss, 1e-2) and math.isfinite(engine.grad_norm)
        if ema is not None:
            ema.update()
    return losses


def whole(engine: Engine) -> dict[str, Tensor]:
    """Gathered weights, on all ranks."""
    return broadcast_object(engine.gather(list(engine.fragments())))


def check_average(stage: int, precision: str) -> tuple[list[float], list[float]]:
    """The average equals one that is computed here from gathered float32 weights; moved in bfloat16 too.

    Returns:
        Losses and gradient norms of the steps.
    """
    engine = Engine(small(), settings(stage, precision), BATCH, 1)
    ema, expected, losses, norms = EMA(engine, 0.9), whole(engine), [], []
    for step in range(STEPS):
        losses += train(engine, step, step + 1, ema)
        norms.append(engine.grad_norm)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in whole(engine).items()}
    average = broadcast_object(ema.state_dict())
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value, atol=1e-6, rtol=1e-6)
        assert precision == "float32" or not torch.equal(value, value.bfloat16().float()), "masters are float32"
    held = sum(values.numel() for _, _, values in ema.fragments)
    total = sum(value.numel() for value in expected.values())
    assert held == total if stage == 0 else held < 0.8 * total, "the average is sharded with the masters"
    return losses, norms


def check_skip(stage: int, precision: str) -> None:
    """Not a number in one rank's loss, or only in its gradient: nothing moves on any rank, and the run goes on."""
    engine = Engine(small(), settings(stage, precision), BATCH, 1)
    train(engine, 0, 3)
    before, state = whole(engine), whole_state(engine)
    for hidden in (False, True):
        x = data(3, rank())
        if rank() == 1 and not hidden:
            x[0, 0] = math.nan
        loss = loss_of(engine, x)
        if rank() == 1 and hidden:
            loss.register_hook(lambda gradient: gradient * math.nan)
            assert loss.isfinite()
        assert not engine.step(loss, 1e-2) and not math.isfinite(engine.grad_norm)
        assert all(torch.equal(value, before[name]) for name, value in whole(engine).items())
        after = whole_state(engine)
        assert all(torch.equal(value, state[kind][name]) for kind in state for name, value in after[kind].items())
    train(engine, 3, 6)
    undisturbed = Engine(small(), settings(stage, precision), BATCH, 1)
    train(undisturbed, 0, 6)
    expected = whole(undisturbed)
    assert all(torch.equal(value, expected[name]) for name, value in whole(engine).items())


def whole_state(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state, whole, on all ranks."""
    return broadcast_object({kind: engine.gather(fragments) for kind, fragments in engine.optimizer_fragments().items()})


def check_other_stages(stage: int, stages: Sequence[int], precision: str) -> None:
    """A state goes on at every other stage: bit for bit at the same, to float32's rounding elsewhere."""
    engine = Engine(small(), settings(stage, precision), BATCH, 1)
    train(engine, 0, 5)
    weights, state, scalars = whole(engine), whole_state(engine), engine.scalars()
    train(engine, 5, 10)
    expected = whole(engine)

    def read(kind: str, name: str, start: int, count: int) -> Tensor:
        return (weights if kind == "master" else state[kind])[name].flatten()[start : start + count]

    reader: Reader = read
    for other in stages:
        model = copy.deepcopy(small())
        model.load_state_dict(weights)
        resumed = Engine(model, settings(other, precision), BATCH, 1)
        resumed.load(reader, list(state), scalars)
        train(resumed, 5, 10)
        for name, value in whole(resumed).items():
            if other == stage:
                assert torch.equal(value, expected[name])
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def transformer_losses(checkpoint_layers: str) -> list[float]:
    """Losses of three steps of a small sparse transformer at stage 3."""
    torch.manual_seed(0)
    spec = ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (4, 8, 8), sparse_grid=(2, 2, 2), num_classes=0)
    engine = Engine(DiffusionTransformer(spec, checkpoint_layers=checkpoint_layers), settings(3, "float32"), BATCH, 1)
    x = torch.randn(BATCH, 4, 4, 8, 8, generator=torch.Generator().manual_seed(rank()))
    losses = []
    for _ in range(3):
        loss = (engine(x, torch.tensor([900, 100]))[:, :4] - x).square().mean()
        assert engine.step(loss, 1e-2)
        losses.append(loss.item())
    return losses


def check_recomputed() -> None:
    """Activations that are computed again in the backward pass, out of weights that are gathered again, change no loss."""
    losses = transformer_losses("PMSRD")
    torch.testing.assert_close(losses, transformer_losses(""), atol=1e-5, rtol=1e-5)
    assert losses[-1] < losses[0]


def main(precision: str, stages: Sequence[int]) -> None:
    runs = {}
    for stage in stages:
        runs[stage] = check_average(stage, precision)
        check_skip(stage, precision)
        check_other_stages(stage, stages, precision)
        if is_main():
            print(f"stage {stage} {precision}: average, skipping, other stages", flush=True)
    reference = plain_training(STEPS) if precision == "float32" else runs[0]
    tolerance = 1e-5 if precision == "float32" else 1e-2  # of bfloat16's rounding in other orders
    assert max(reference[1]) > 2 * 0.3, "clipping acts"
    for stage in stages:
        torch.testing.assert_close(runs[stage], reference, atol=tolerance, rtol=tolerance)
    if is_main():
        print(f"losses and norms {precision}: all stages alike", flush=True)
    if precision == "float32" and 3 in stages:
        check_recomputed()
        if is_main():
            print("stage 3 float32: recomputed activations", flush=True)


if __name__ == "__main__":
    init_process_group_if_launched()
    check_ranks()
    torch.set_num_threads(1)
    main(sys.argv[1], [int(stage) for stage in sys.argv[2:]])
    shutdown()
