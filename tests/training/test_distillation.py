"""A student that equals its teacher has distance 0, and only the student learns from the distance."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parity import disturbed
from torch import Tensor

from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.data.clips import ClipDataset, fixed_clips
from sparsevid.data.sources import MemoryFrames
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ConfigError, DistillConfig
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.sparsity.times import UniformTimes
from sparsevid.training.distillation import Distillation, Recorder, boundary_layers
from sparsevid.training.initial import initial_weights
from sparsevid.training.objective import DiffusionObjective, FlowObjective

DENSE = ModelSpec("6D", 32, 2, (4, 4, 4), in_channels=4, patch_size=1, num_classes=3)
SPARSE = replace(DENSE, layout="1P 1M1S1R1D 1D", sparse_grid=(2, 2, 2))
BOUNDARIES = (0, 4)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> tuple[str, DiffusionTransformer]:
    """An exported dense model whose layers all do something, and its folder."""
    folder = tmp_path_factory.mktemp("teacher")
    model = disturbed(DENSE, seed=1)
    model.save_pretrained(folder)
    return str(folder), model


def batch(images: int = 0) -> tuple[Tensor, Tensor, dict]:
    """Noisy latents, times and conditions of two clips."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.tensor([[0, 1, 2], [3, 0, 1]])[:, : 1 + images]
    cond = {"labels": labels if images else labels[:, 0]} | ({"images": images} if images else {})
    return torch.randn(2, 4, 4 + images, 4, 4, generator=generator), torch.tensor([30, 700]), cond


def distillation(
    folder: str, student: ModelSpec, output: float = 1.0, features: float = 1.0, dtype=torch.float32
) -> Distillation:
    return Distillation(DistillConfig(folder, output, features), student, "cpu", dtype)


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_that_equals_its_teacher_has_distance_zero(teacher, images, dtype):
    folder, model = teacher
    x, t, cond = batch(images)
    distill = distillation(folder, SPARSE, dtype=dtype)
    student = DiffusionTransformer(DENSE).to(dtype)
    student.load_state_dict(model.state_dict())
    output, features = student(x.to(dtype), t, features=distill.feature_layers, **cond)
    assert torch.equal(distill.loss(output, features, x, t, grid=(2, 2, 2), **cond), torch.zeros(2))
    plain = distillation(folder, DENSE, features=0.0, dtype=dtype)
    assert torch.equal(plain.loss(student(x.to(dtype), t, **cond), {}, x, t, **cond), torch.zeros(2))


@pytest.mark.parametrize("images", [0, 2])
def test_the_loss_is_the_weighted_mean_of_squares(teacher, images):
    folder, model = teacher
    x, t, cond = batch(images)
    distill, student = distillation(folder, SPARSE, output=0.5, features=3.0), disturbed(SPARSE, seed=3)
    output, features = student(x, t, features=distill.feature_layers, grid=(2, 2, 2), **cond)
    target, tokens = model(x, t, features=BOUNDARIES, **cond)
    for sample in range(2):
        expected = 0.5 * torch.nn.functional.mse_loss(output[sample], target[sample])
        for layer in BOUNDARIES:
            expected = expected + 3.0 * torch.nn.functional.mse_loss(features[layer][sample], tokens[layer][sample]) / 2
        loss = distill.loss(output, features, x, t, grid=(2, 2, 2), **cond)[sample]
        assert torch.allclose(loss, expected, rtol=1e-5)


def test_gradients_reach_the_student_alone(teacher):
    x, t, cond = batch()
    distill, student = distillation(teacher[0], SPARSE), disturbed(SPARSE, seed=3)
    before = {name: value.clone() for name, value in distill.teacher.state_dict().items()}
    output, features = student(x, t, features=distill.feature_layers, **cond)
    distill.loss(output, features, x, t, **cond).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters() if parameter.numel())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in distill.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in distill.teacher.state_dict().items())
    assert not distill.teacher.training


def test_features_alone_leave_what_follows_the_last_boundary_alone(teacher):
    x, t, cond = batch()
    distill, student = distillation(teacher[0], SPARSE, output=0.0), disturbed(SPARSE, seed=3)
    output, features = student(x, t, features=distill.feature_layers, **cond)
    distill.loss(output, features, x, t, **cond).mean().backward()
    touched = {
        index
        for index, block in enumerate(student.blocks)
        if any(p.grad is not None and p.grad.any() for p in block.parameters())
    }
    assert touched == {0, 1, 2, 3, 4}


def test_tokens_compared_are_those_that_leave_the_boundary_layers(teacher):
    """Seen by hooks on the layers of both models."""
    x, t, cond = batch()
    distill, student = distillation(teacher[0], SPARSE), disturbed(SPARSE, seed=3)
    assert distill.feature_layers == BOUNDARIES
    seen: dict[tuple[str, int], Tensor] = {}
    for name, model in (("teacher", distill.teacher), ("student", student)):
        for index, block in enumerate(model.blocks):
            block.register_forward_hook(lambda _m, _i, out, key=(name, index): seen.__setitem__(key, out))
    output, features = student(x, t, features=distill.feature_layers, **cond)
    loss = distill.loss(output, features, x, t, **cond)
    expected = (output - distill.teacher(x, t, **cond)).square().flatten(1).mean(1)
    for layer in BOUNDARIES:
        assert seen["student", layer].shape == seen["teacher", layer].shape == (2, 4, 16, 32)
        expected = expected + (seen["student", layer] - seen["teacher", layer]).square().flatten(1).mean(1) / 2
    assert torch.allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("layout", "layers"),
    [
        ("2P 4(1M3S1R1D) 2D", (1, 7, 13, 19, 25)),
        ("1P 2(1M2S1R1D) 1D", (0, 5, 10)),
        ("1M1S1R3D", (3,)),
        ("1D 2M1R2D 1M1R2D", (0, 4, 5, 8)),
        ("28D", ()),
    ],
)
def test_boundaries_stand_before_and_after_each_module(layout, layers):
    assert boundary_layers(parse_layout(layout)) == layers


def test_boundary_of_a_module_without_a_dense_layer_is_its_recovery():
    assert boundary_layers(parse_layout("1P 2(1M1R)", allow_no_dense=True)) == (0, 2, 4)


def test_recorder_keeps_what_an_objective_passes_through(teacher):
    """An objective neither knows of the recorder nor gets another loss from it."""
    _, model = teacher
    _, _, cond = batch()
    generator = torch.Generator().manual_seed(4)
    x0, noise = (torch.randn(2, 4, 4, 4, 4, generator=generator) for _ in range(2))
    objective, u = DiffusionObjective(), torch.tensor([0.1, 0.8])
    for layers in ((), BOUNDARIES):
        recorder = Recorder(model, layers)
        loss = objective.loss(recorder, x0, u, noise, **cond)
        assert torch.equal(loss, objective.loss(model, x0, u, noise, **cond))
        again = model(recorder.x, recorder.t, **recorder.cond)
        assert torch.equal(recorder.output, again) and recorder.features.keys() == set(layers)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"in_channels": 8}, "in_channels is 4 there and 8 here"),
        ({"num_classes": 5}, "num_classes is 3 there and 5 here"),
        ({"no_class": False}, "no_class is True there and False here"),
        ({"patch_size": 2, "sparse_grid": (2, 1, 1)}, "patch_size is 1 there and 2 here"),
        ({"learn_sigma": False}, "learn_sigma is True there and False here"),
        ({"input_size": (1, 4, 4), "sparse_grid": (1, 2, 2)}, "is_video is True there and False here"),
        ({"hidden_size": 64}, "hidden_size is 32 there and 64 here"),
        ({"layout": "1P 1M2S1R1D 1D"}, "depth is 6 there and 7 here"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher, changes, reason):
    with pytest.raises(ValueError, match=reason):
        distillation(teacher[0], replace(SPARSE, **changes))


def test_outputs_of_models_of_other_width_and_depth_compare(teacher):
    x, t, cond = batch()
    small = disturbed(replace(DENSE, layout="1P 1M1R1D", sparse_grid=(2, 2, 2), hidden_size=16), seed=5)
    loss = distillation(teacher[0], small.spec, features=0.0).loss(small(x, t, **cond), {}, x, t, **cond)
    assert loss.shape == (2,) and (loss > 0).all()


def test_a_student_at_another_resolution_compares(teacher):
    x, t, cond = torch.randn(2, 4, 2, 6, 6), torch.tensor([30, 700]), batch()[2]
    student = disturbed(replace(SPARSE, input_size=(2, 6, 6), sparse_grid=(1, 3, 3)), seed=5)
    distill = distillation(teacher[0], student.spec)
    output, features = student(x, t, features=distill.feature_layers, **cond)
    assert distill.loss(output, features, x, t, **cond).isfinite().all()


def test_settings_without_meaning_are_refused(teacher, tmp_path):
    folder, _ = teacher
    with pytest.raises(ConfigError, match=r"distill.teacher is not given"):
        Distillation(DistillConfig(), SPARSE, "cpu", torch.float32)
    with pytest.raises(ConfigError, match=r"distill.output = 0.0 and distill.features = 0.0"):
        distillation(folder, SPARSE, output=0.0, features=0.0)
    with pytest.raises(ConfigError, match=r"distill.features = -1.0"):
        distillation(folder, SPARSE, features=-1.0)
    with pytest.raises(ConfigError, match=r"layout '6D' has no sparse module .* accepted is 0"):
        distillation(folder, DENSE)
    disturbed(SPARSE, seed=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a teacher is dense, found the layout '1P 1M1S1R1D 1D'"):
        distillation(str(tmp_path), SPARSE)


def real_latents(clips_folder: Path) -> Tensor:
    """Latents of real clips, (64, 16, 4, 6, 6)."""
    manifest = build_manifest(clips_folder)
    dataset = ClipDataset(manifest, ClipRule(4, 4), MemoryFrames(manifest, (48, 48)))
    clips = torch.stack([dataset[key]["clip"] for key in fixed_clips(dataset, 64, dataset.seed)])
    return LinearAutoencoder.fit(clips).encode(clips)


def fit(model: DiffusionTransformer, latents: Tensor, steps: int, distill: Distillation | None = None) -> None:
    """Train on clips, times and noise that are the same at each call."""
    objective, generator = FlowObjective(UniformTimes()), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _step in range(steps):
        x0 = latents[torch.randperm(len(latents), generator=generator)[:8]]
        u, noise = torch.rand(8, generator=generator), torch.randn(x0.shape, generator=generator)
        recorder = Recorder(model, distill.feature_layers if distill else ())
        loss = objective.loss(recorder, x0, u, noise)
        if distill:
            loss = loss + distill.loss(recorder.output, recorder.features, recorder.x, recorder.t, **recorder.cond)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()


@torch.no_grad()
def held_out_loss(model: DiffusionTransformer, latents: Tensor) -> float:
    """The mean loss at fixed times and noise, 8 of each for a clip."""
    generator = torch.Generator().manual_seed(1)
    x0 = latents.repeat(8, 1, 1, 1, 1)
    u, noise = torch.rand(len(x0), generator=generator), torch.randn(x0.shape, generator=generator)
    return FlowObjective(UniformTimes()).loss(model, x0, u, noise).mean().item()


@pytest.mark.slow
def test_held_out_loss_with_and_without_a_teacher(clips_folder, tmp_path):
    """A converted student after the same steps; which of the two is better is a result (printed), not a property."""
    latents = real_latents(clips_folder)
    trained_on, held_out = latents[:56], latents[56:]
    spec = ModelSpec("12D", 64, 4, (4, 6, 6), in_channels=16, patch_size=1, learn_sigma=False)
    torch.manual_seed(0)
    dense = DiffusionTransformer(spec)
    fit(dense, trained_on, 120)
    dense.save_pretrained(tmp_path)
    student = replace(spec, layout="1P 2(1M2S1R1D) 1D", sparse_grid=(2, 4, 4))
    reached = {"teacher": held_out_loss(dense, held_out)}
    weights, _ = initial_weights(str(tmp_path), student)
    for name, output, features, steps in (
        ("untrained", 0, 0, 0),
        ("alone", 0, 0, 60),
        ("output", 1, 0, 60),
        ("both", 1, 1, 60),
    ):
        model = DiffusionTransformer(student)
        model.load_state_dict(weights)
        distill = distillation(str(tmp_path), student, output, features) if output else None
        fit(model, trained_on, steps, distill)
        reached[name] = held_out_loss(model, held_out)
    print("held-out loss: " + ", ".join(f"{name} {loss:.4f}" for name, loss in reached.items()))
    assert all(math.isfinite(loss) for loss in reached.values())
    assert max(reached["alone"], reached["output"], reached["both"]) < reached["untrained"]
