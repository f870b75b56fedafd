"""Stage 0's own step: float32 masters beside rounded weights, one wait a step, few float32 gradients at a time."""

import copy
import math

import deepspeed
import pytest
import torch
from fake_gpu import fake_gpu
from torch import Tensor, nn

import sparsevid.training.unsharded
from sparsevid.runs.config import TrainConfig
from sparsevid.training.engine import Engine, engine_settings
from sparsevid.training.unsharded import Unsharded, total_norm

CLIPPING = 0.3


class Small(nn.Module):
    """A network that is called with times, as an engine calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))

    def forward(self, x: Tensor, t: Tensor | None) -> Tensor:
        return self.layers(x)


def data(step: int) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(step))


def loss_of(output: Tensor) -> Tensor:
    return (output.float() - 1.0).square().mean()


def settings() -> TrainConfig:
    return TrainConfig(precision="bfloat16", lr=1e-2, gradient_clipping=CLIPPING, weight_decay=0.01)


def deepspeeds_own(model: nn.Module, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """Losses, and float32 weights, of DeepSpeed's own optimizer of bfloat16 at stage 0."""
    train = settings()
    told = engine_settings(train, 4, 1) | {"bf16": {"enabled": True}, "gradient_clipping": CLIPPING}
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01)
    engine, wrapped, _, _ = deepspeed.initialize(model=model, model_parameters=parameters, optimizer=optimizer, config=told)
    wrapped.optimizer.state.clear()
    losses = []
    for step in range(steps):
        loss = loss_of(engine(data(step).bfloat16(), None))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses, dict(zip(dict(model.named_parameters()), wrapped.fp32_groups[0], strict=True))


@pytest.mark.parametrize("group", [1, 2**25])
def test_training_is_that_of_deepspeeds_own_optimizer(monkeypatch, group):
    """Whatever the number of gradients that are float32 at one time. Our masters begin unrounded."""
    monkeypatch.setattr(sparsevid.training.unsharded, "GROUP", group)
    torch.manual_seed(0)
    model = Small()
    model.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
    engine = Engine(copy.deepcopy(model), settings(), 4, 1)  # which prepares DeepSpeed
    losses, norms = [], []
    for step in range(20):
        loss = loss_of(engine(data(step), None))
        losses.append(loss.item())
        assert engine.step(loss, 1e-2)
        norms.append(engine.grad_norm)
    expected, weights = deepspeeds_own(model, 20)
    assert max(norms) > CLIPPING, "clipping acts"
    assert losses == pytest.approx(expected, rel=1e-2)
    for name, _, values in engine.fragments():
        torch.testing.assert_close(values, weights[name].detach().flatten(), atol=2e-3, rtol=1e-2)
        assert values.dtype == torch.float32 and not torch.equal(values, values.bfloat16().float())
        assert torch.equal(engine.names[name].detach().flatten(), values.bfloat16()), "the model's are rounded masters"


def stepping(weights: dict[str, nn.Parameter], dtype: torch.dtype) -> tuple[Unsharded, torch.optim.Optimizer]:
    whole = Unsharded(weights, dtype)
    optimizer = torch.optim.AdamW(whole.masters.values(), lr=1e-2, fused=True)
    whole.round()
    whole.take_over(optimizer, CLIPPING)
    return whole, optimizer


def test_no_more_gradients_are_float32_than_a_group(monkeypatch):
    monkeypatch.setattr(sparsevid.training.unsharded, "GROUP", 20)
    weights = {str(index): nn.Parameter(torch.ones(8)) for index in range(9)}
    whole, optimizer = stepping(weights, torch.bfloat16)
    most = []

    def note(optimizer, args, kwargs):
        most.append(sum(master.numel() for master in whole.masters.values() if master.grad is not None))

    optimizer.register_step_pre_hook(note)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert most == [16, 16, 16, 16, 8] and whole.grad_norm == pytest.approx(math.sqrt(72))
    assert all(optimizer.state[master]["step"] == 1 for master in whole.masters.values())
    assert all(master.grad is None and (master < 1).all() for master in whole.masters.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_waits_for_the_device_once_whatever_the_number_of_weights(dtype):
    for count in (2, 20):
        with fake_gpu(answer=1.0) as traffic:
            weights = {str(index): nn.Parameter(torch.ones(8, device="cuda")) for index in range(count)}
            whole, optimizer = stepping(weights, dtype)
            for _ in range(2):
                for weight in weights.values():
                    weight.grad = torch.ones_like(weight)
                traffic.clear()
                optimizer.step()
                assert [event.kind for event in traffic.events] == ["read"], traffic.events
            assert all(weight.dtype == dtype for weight in weights.values()) and whole.grad_norm == 1.0


def test_the_norm_of_rounded_gradients_is_not_rounded():
    gradients = [torch.full((1000,), 1 + 2**-7, dtype=torch.bfloat16) for _ in range(3)]
    assert total_norm(gradients).item() == pytest.approx((1 + 2**-7) * math.sqrt(3000), rel=1e-6)
