"""Layers that are compiled for training: the same training, few graphs, and what is refused."""

import pytest
import torch
from torch._dynamo.utils import counters

import sparsevid.models.compiled
from sparsevid.models.compiled import compile_layers
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ConfigError, TrainConfig
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.engine import Engine, engine_settings
from sparsevid.training.trainer import Trainer

DENSE = ModelSpec("4D", 16, 2, (2, 4, 4), num_classes=0)
SPARSE = ModelSpec("1P 1(1M1S1R1D) 2D", 32, 2, (4, 8, 8), sparse_grid=(2, 2, 2), num_classes=0)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def losses(spec: ModelSpec, backend: str | None, stage: int = 0, grids=(None,), checkpoint_layers: str = "") -> list[float]:
    """Losses of two steps in each grid; weights begin at random, so that all layers count."""
    torch.manual_seed(0)
    model = DiffusionTransformer(spec, checkpoint_layers=checkpoint_layers)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    names = list(model.state_dict())
    if backend is not None:
        compile_layers(model, backend)
    assert list(model.state_dict()) == names
    engine = Engine(model, TrainConfig(zero_stage=stage, lr=1e-2), 2, 1)
    x, found = torch.randn(2, spec.in_channels, *spec.input_size, generator=torch.Generator().manual_seed(1)), []
    for grid in (*grids, *grids):
        options = {} if grid is None else {"grid": grid}
        loss = (engine(x, torch.tensor([900, 100]), **options)[:, : spec.in_channels] - x).square().mean()
        assert engine.step(loss, 1e-2)
        found.append(loss.item())
    return found


def test_compiled_layers_train_as_before_and_share_graphs():
    expected = losses(DENSE, None)
    assert losses(DENSE, "eager") == pytest.approx(expected, abs=5e-5)
    assert 1 <= counters["stats"]["unique_graphs"] <= 2, "one of spatial layers and one of temporal ones"
    assert not counters["graph_break"]


@pytest.mark.slow
def test_inductor_trains_as_before():
    assert losses(DENSE, "inductor") == pytest.approx(losses(DENSE, None), abs=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "recomputed"), [(0, ""), (1, "PMSRD"), (2, "")])
def test_sparse_layers_are_compiled_at_each_stage(stage, recomputed):
    grids = ((1, 2, 2), (2, 2, 2))
    expected = losses(SPARSE, None, stage, grids)
    assert losses(SPARSE, "aot_eager", stage, grids, recomputed) == pytest.approx(expected, abs=5e-5)
    assert counters["stats"]["unique_graphs"] <= 10 and not counters["graph_break"]


def test_sharded_weights_are_refused(tiny):
    with pytest.raises(ConfigError, match=r"train\.compile=true needs train\.zero_stage 0, 1 or 2"):
        engine_settings(TrainConfig(compile=True, zero_stage=3), 1, 1)


def test_a_run_compiles_its_layers(tiny, monkeypatch):
    monkeypatch.setattr(sparsevid.models.compiled, "BACKEND", "eager")
    config, _ = tiny("model.layout=2D", "train.compile=true", "train.steps=1", "train.checkpoint_every=1")
    assert Trainer(config).train() and counters["stats"]["unique_graphs"]
