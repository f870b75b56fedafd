"""Muon: PyTorch's own where that exists, AdamW's bits for all else, and what an engine asks of an optimizer."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_gpu import fake_gpu
from safetensors.torch import load_file
from torch import Tensor, nn

import sparsevid.training.optimizers.muon
import sparsevid.training.unsharded
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.checkpoints import CheckpointError, checkpoint_path
from sparsevid.runs.config import ConfigError, TrainConfig
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.engine import Engine
from sparsevid.training.optimizers.muon import MAPS, Muon, maps_of, orthogonal
from sparsevid.training.trainer import Trainer

OPTIONS = {"lr": 1e-2, "weight_decay": 0.1}
SPEC = ModelSpec("1P 1(1M1S1R1D) 1D", 32, 2, (4, 8, 8), sparse_grid=(2, 2, 2), num_classes=3)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_weights() -> dict[str, nn.Parameter]:
    """Of a sparse transformer, at random, so that all of them count."""
    random = generator(0)
    weights = dict(DiffusionTransformer(SPEC).named_parameters())
    return {name: nn.Parameter(torch.randn(value.shape, generator=random)) for name, value in weights.items()}


def gradients(weights: dict[str, nn.Parameter], step: int) -> dict[str, Tensor]:
    random = generator(step)
    return {name: torch.randn(weight.shape, generator=random) for name, weight in weights.items()}


def train(weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        for name, gradient in gradients(weights, step).items():
            weights[name].grad = gradient
        optimizer.step()


def maps(name: str, value: Tensor) -> tuple[Tensor, ...]:
    """The matrices that a weight holds."""
    return value.chunk(maps_of(name, value))


def test_matrices_of_layers_and_no_other_weights():
    weights = model_weights()
    found = {name: maps_of(name, weight) for name, weight in weights.items()}
    kinds = {name.split(".", 2)[2]: count for name, count in found.items() if count}
    assert kinds == {
        "attn.qkv.weight": 3, "attn.kv.weight": 2, "attn.q.weight": 1, "attn.v.weight": 1, "attn.proj.weight": 1,
        "mlp.fc1.weight": 1, "mlp.fc2.weight": 1, "merged_layer1.weight": 1, "merged_layer2.weight": 1,
        "adaLN_modulation.1.weight": 6,
    }  # fmt: skip
    found = {name: count for name, count in found.items() if "adaLN" not in name or not name.startswith("blocks.")}
    fused = {name for name, module in DiffusionTransformer(SPEC).named_modules() if hasattr(module, "maps")}
    assert {name.removesuffix(".weight") for name, count in found.items() if count > 1} == fused
    assert {name.split(".")[-1] for name in fused} == set(MAPS)
    others = {name for name, count in found.items() if not count and weights[name].ndim == 2}
    assert {"final_layer.linear.weight", "y_embedder.embedding_table.weight", "final_layer.adaLN_modulation.1.weight"} < others


def test_of_attention_to_text_keys_and_values_are_two_maps_and_tables_none():
    spec = replace(SPEC, num_classes=0, text_channels=6, shared_modulation=True)
    found = {name: maps_of(name, weight) for name, weight in DiffusionTransformer(spec).named_parameters()}
    assert found["blocks.0.cross_attn.kv_linear.weight"] == 2 and found["blocks.0.cross_attn.q_linear.weight"] == 1
    assert not found["blocks.0.scale_shift_table"] and not found["t_block.1.weight"]


@pytest.mark.parametrize("batch", [1, 2**22])
@pytest.mark.parametrize("steps", [1, 10])
def test_matrices_move_as_pytorchs_own(monkeypatch, steps, batch):
    """In its precision, whatever is iterated together. Its products of single matrices may round otherwise: by one bit of
    bfloat16, 2⁻⁸, of which five iterations make up to some percent of a move."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip(f"PyTorch {torch.__version__} has no torch.optim.Muon, which came with 2.9")
    monkeypatch.setattr(sparsevid.training.optimizers.muon, "BATCH", batch)
    weights = model_weights()
    before = {name: weight.detach().clone() for name, weight in weights.items() if maps_of(name, weight)}
    apart = {name: [nn.Parameter(each.clone()) for each in maps(name, value)] for name, value in before.items()}
    reference = torch.optim.Muon(
        [each for parts in apart.values() for each in parts], adjust_lr_fn="match_rms_adamw", **OPTIONS
    )
    train(weights, Muon(weights, dtype=torch.bfloat16, **OPTIONS), 0, steps)
    for step in range(steps):
        drawn = gradients(weights, step)
        for name, parts in apart.items():
            for each, gradient in zip(parts, maps(name, drawn[name]), strict=True):
                each.grad = gradient.clone()
        reference.step()
    for name, parts in apart.items():
        expected = torch.cat(parts).detach()
        assert (weights[name] - expected).norm() < 0.05 * (expected - before[name]).norm(), name


def test_all_else_moves_by_the_bits_of_adamw():
    weights, others = model_weights(), model_weights()
    rest = [weight for name, weight in others.items() if not maps_of(name, weight)]
    options = {**OPTIONS, "betas": (0.8, 0.95), "eps": 1e-6}
    train(weights, Muon(weights, **options), 0, 5)
    train(others, torch.optim.AdamW(rest, fused=True, **options), 0, 5)
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]) == (not maps_of(name, weight)), name


@pytest.mark.parametrize("shape", [(4, 24, 24), (3, 16, 64)])
def test_directions_stay_and_sizes_become_alike(shape):
    """U·S·Vᵀ → about U·Vᵀ, where no singular value is far below the others, and whatever the scale of all."""
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator(0), dtype=torch.float64), full_matrices=False)
    sizes = torch.linspace(0.1, 1.0, shape[-2], dtype=torch.float64)
    for scale in (1e-3, 1.0, 1e6):
        made = orthogonal((u * (scale * sizes) @ v).float()).double()
        turned = u.mT @ made @ v.mT
        found = turned.diagonal(dim1=-2, dim2=-1)
        assert ((found > 0.65) & (found < 1.25)).all(), found
        torch.testing.assert_close(turned, torch.diag_embed(found), atol=1e-4, rtol=0)
        assert torch.linalg.matrix_norm(made - (u * found.unsqueeze(-2)) @ v).max() < 1e-3, "and nothing outside of them"


@pytest.mark.parametrize("shape", [(32, 32), (128, 32), (32, 128)])
def test_moves_have_the_size_of_adamws(shape):
    """Root mean square 0.2 of the rate, whatever the shape."""
    weights = {"blocks.0.mlp.fc1.weight": nn.Parameter(torch.zeros(shape))}
    train(weights, Muon(weights, lr=1e-2), 0, 1)
    assert weights["blocks.0.mlp.fc1.weight"].square().mean().sqrt().item() == pytest.approx(0.2e-2, rel=0.2)


def test_gradients_of_zero_move_nothing():
    weights = model_weights()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = Muon(weights, lr=1e-2)
    for _ in range(2):
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())


def test_a_weight_without_a_gradient_is_passed_over():
    """And a step that is made in several calls is the step that is made in one."""
    whole, parts = model_weights(), model_weights()
    train(whole, Muon(whole, **OPTIONS), 0, 4)
    optimizer = Muon(parts, **OPTIONS)
    for step in range(4):
        drawn = gradients(parts, step)
        for names in (list(parts)[::2], list(parts)[1::2]):
            for name, weight in parts.items():
                weight.grad = drawn[name] if name in names else None
            optimizer.step()
    for name, weight in parts.items():
        torch.testing.assert_close(weight, whole[name], atol=1e-4, rtol=1e-4)
        assert optimizer.state[weight].get("step", 4) == 4


def test_a_step_waits_for_no_device():
    with fake_gpu() as traffic:
        weights = {name: nn.Parameter(torch.ones(value.shape, device="cuda")) for name, value in model_weights().items()}
        optimizer = Muon(weights, **OPTIONS)
        for _ in range(2):
            for weight in weights.values():
                weight.grad = torch.ones_like(weight)
            optimizer.step()
        assert traffic.events == []


def engine(precision: str = "float32") -> tuple[Engine, dict[str, Tensor]]:
    """An engine, and its weights after five steps on noise."""
    torch.manual_seed(0)
    made = Engine(DiffusionTransformer(SPEC), TrainConfig(optimizer="muon", precision=precision, lr=1e-2), 2, 1)
    for step in range(5):
        x = torch.randn(2, SPEC.in_channels, *SPEC.input_size, generator=generator(step))
        output = made(x, torch.tensor([900, 100]), labels=torch.tensor([0, 1]))
        assert made.step((output[:, : SPEC.in_channels].float() - x).square().mean(), 1e-2)
    return made, {name: values.clone() for name, _, values in made.fragments()}


def test_a_state_holds_of_each_weight_what_there_is():
    made, _ = engine()
    state = {kind: {fragment.name for fragment in found} for kind, found in made.optimizer_fragments().items()}
    matrices = {name for name, weight in made.names.items() if maps_of(name, weight)}
    assert state == {"exp_avg": set(made.names), "exp_avg_sq": set(made.names) - matrices}
    assert made.scalars() == {"optimizer.step": 5.0}


@pytest.mark.parametrize("group", [1, 4000])
def test_weights_that_are_stepped_group_by_group_count_one_step(monkeypatch, group):
    """As in bfloat16, whose float32 masters get their gradients few at a time."""
    _, expected = engine("bfloat16")
    monkeypatch.setattr(sparsevid.training.unsharded, "GROUP", group)
    made, weights = engine("bfloat16")
    assert made.scalars() == {"optimizer.step": 5.0}
    for name, values in weights.items():
        torch.testing.assert_close(values, expected[name], atol=1e-2, rtol=1e-2)
        assert not torch.equal(values, values.bfloat16().float()) or not values.any()


def saved(checkpoint: Path) -> dict[str, Tensor]:
    """Weights, average, optimizer and autoencoder."""
    files = sorted(checkpoint.glob("*/*.safetensors"))
    assert {file.parent.name for file in files} >= {"model", "ema", "training"}
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_equals_uninterrupted(tiny, precision):
    """Bit for bit: weights, average and optimizer."""
    options = ("train.optimizer=muon", f"train.precision={precision}")
    whole, _ = tiny("name=whole", *options)
    Trainer(whole).train()
    again, _ = tiny("name=again", *options)
    shutil.copytree(checkpoint_path(whole.folder, 2), checkpoint_path(again.folder, 2))
    Trainer(again).train()
    ends = [saved(checkpoint_path(config.folder, 6)) for config in (whole, again)]
    assert ends[0].keys() == ends[1].keys()
    assert [name for name, value in ends[0].items() if not torch.equal(value, ends[1][name])] == []
    adamw, _ = tiny("name=again", f"train.precision={precision}")
    with pytest.raises(CheckpointError, match="another optimizer: optimizer is 'muon' there and 'adamw' here"):
        Trainer(adamw)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sharded_weights_are_refused(tiny, stage):
    config, _ = tiny("train.optimizer=muon", f"train.zero_stage={stage}")
    message = rf"train\.optimizer=muon needs train\.zero_stage=0, and this run has stage {stage}: .* take adamw, adam and sgd"
    with pytest.raises(ConfigError, match=message):
        Trainer(config)
