"""Whether a device gives what is right: outputs of public implementations, kernels, samplers, losses, gradients, tables.

Dimensions: B clips, C channels, T frames, H×W cells.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor, nn

from sparsevid.benchmark.gpu.machine import TINY, TINY_RATES, first_line, labelled, open_device, relative_error
from sparsevid.benchmark.gpu.parts import SKIPPED, Row, Settings, in_checkout
from sparsevid.diffusion.gaussian import GaussianDiffusion
from sparsevid.diffusion.samplers import DIFFUSION_SAMPLERS, FLOW_SAMPLERS, SAMPLERS, ddim, ddpm
from sparsevid.diffusion.wrappers import with_guidance, with_token_schedule
from sparsevid.models.attention import BACKENDS, BackendError
from sparsevid.models.convert.dense_to_sparse import dense_to_sparse
from sparsevid.models.convert.public import from_public
from sparsevid.models.embeddings import spatial_positions, temporal_positions, wave_frequencies
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ObjectiveConfig
from sparsevid.sparsity.schedule import paper_schedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.sparsity.tokens import pool, upsample
from sparsevid.training.objective import build_objective

REFERENCE = "tests/reference"
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # over the largest magnitude
SAMPLE_TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 1e-4
MODELS = {"latte_uncond": "sd.", "latte_class": "sd.", "dit": "sd.", "sparsedit": "sd.", "dit_to_sparsedit": "dense."}
GUIDED = {"latte_class": 4, "dit": 3}  # channels
SPARSE = replace(TINY, hidden_size=144, num_classes=3)  # heads of 72 channels, as in XL
STEPS = 6


def rows(settings: Settings) -> Iterator[Row]:
    """Everything that has a reference: stored, or the same on the CPU.

    Raises:
        NotRun: the stored references are not there.
    """
    device, folder = open_device(settings), in_checkout(REFERENCE)
    with torch.no_grad():
        for name in MODELS:
            yield from public_model(folder, name, device)
        yield from diffusion(folder, device)
        yield from backends(device)
        yield from samplers(device)
    yield from gradients(device)
    yield from tables(device)


def within(case: str, metric: str, error: float, tolerance: float) -> Row:
    """An error that is to be small."""
    return Row(case, metric, error, ok=error <= tolerance, note=f"at most {tolerance:g}")


def load_reference(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a reference file."""
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a handle, not a dict)
        return tensors, json.loads(file.metadata()["config"])


def public_model(folder: Path, name: str, device: torch.device) -> Iterator[Row]:
    """A model with the weights of a public one: its outputs, guided ones too, and those of its sparse model."""
    tensors, config = load_reference(folder, name)
    prefix, dense = MODELS[name], config.get("dense", config)
    weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    converted = from_public(weights, **options(dense))
    expected = tensors["out.dense" if "dense" in config else "out"]
    yield from _outputs(name, converted.weights, converted.spec, tensors, expected, device)
    if name in GUIDED:
        yield _guided(name, converted.weights, converted.spec, tensors, config["cfg_scale"], device)
    if "sparse" in config:
        wanted = {"layout": layout_of(config["sparse"]), "sparse_grid": options(config["sparse"])["sparse_grid"]}
        spec = replace(converted.spec, transition_positions=False, **wanted)
        sparse, _ = dense_to_sparse(converted.weights, converted.spec, spec)
        yield from _outputs(f"{name}, sparse", sparse, spec, tensors, tensors["out.sparse"], device)


def _outputs(case: str, weights: dict, spec: ModelSpec, tensors: dict, expected: Tensor, device: torch.device) -> Iterator[Row]:
    for dtype, tolerance in TOLERANCES.items():
        model = _model(spec, weights, device, dtype)
        labels = tensors["in.y"].to(device) if "in.y" in tensors else None
        out = model(_channels_first(tensors["in.x"]).to(device, dtype), tensors["in.t"].to(device), labels)
        yield within(case, f"output, {_short(dtype)}", relative_error(_as_stored(out, expected), expected), tolerance)


def _guided(case: str, weights: dict, spec: ModelSpec, tensors: dict, scale: float, device: torch.device) -> Row:
    half = len(tensors["cfg.x"]) // 2
    x, t, labels = (tensors[f"cfg.{each}"][:half].to(device) for each in ("x", "t", "y"))
    model = _model(spec, weights, device, torch.float32)
    out = with_guidance(model, scale, spec.num_classes, channels=GUIDED[case])(_channels_first(x), t, labels=labels)
    expected = tensors["cfg.out"][:half]
    return within(case, "guided output, float32", relative_error(_as_stored(out, expected), expected), 1e-5)


def diffusion(folder: Path, device: torch.device) -> Iterator[Row]:
    """The diffusion process, its loss and samplers against stored outputs, with the closed-form network of the file."""
    tensors, _ = load_reference(folder, "diffusion")
    on = {
        name: value.to(device, torch.float32) if value.is_floating_point() else value.to(device)
        for name, value in tensors.items()
    }
    process, t = GaussianDiffusion(), on["t"]

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cos(torch.einsum("oc,bc...->bo...", on["net.A"], x) + (t / 1000).view(-1, *[1] * (x.ndim - 1)))

    noise, noisy = on["noise"], on["q_sample"]
    step = process.p_mean_variance(network(noise, t), noise, t)
    loss = process.loss(network(noisy, t), on["x0"], noisy, t, noise)
    found = {
        "q_sample": process.q_sample(on["x0"], t, noise),
        "pmv.mean": step.mean, "pmv.variance": step.variance, "pmv.log_variance": step.log_variance,
        "pmv.pred_xstart": step.pred_x0,
        "loss.mse": loss.mse, "loss.vb": loss.vb, "loss.loss": loss.loss,
    }  # fmt: skip
    for steps in (10, 50):
        noises = iter(on[f"ddpm{steps}.noise"])
        found[f"ddim{steps}.out"] = ddim(network, noise, steps)
        found[f"ddpm{steps}.out"] = ddpm(network, noise, steps, noise=partial(next, noises))
    for name, value in found.items():
        yield within("diffusion", name, relative_error(value, tensors[name]), 1e-5)


def backends(device: torch.device) -> Iterator[Row]:
    """A sparse model with each kernel against plain tensor products on the CPU."""
    reference = _randomised(SPARSE, attention="math")
    x, t, labels = labelled(SPARSE, 2)
    expected = reference(x, t, labels)
    for name in BACKENDS:
        for dtype, tolerance in TOLERANCES.items():
            case, metric = f"backend {name}", f"output, {_short(dtype)}"
            try:
                model = DiffusionTransformer(SPARSE, attention=name).eval()
                model.load_state_dict(reference.state_dict())
                out = model.to(device, dtype)(x.to(device, dtype), t.to(device), labels.to(device))
            except BackendError as error:
                yield Row(case, SKIPPED, note=f"{_short(dtype)}: {first_line(error)}")
                continue
            yield within(case, metric, relative_error(out, expected), tolerance)


def samplers(device: torch.device) -> Iterator[Row]:
    """Samples of a sparse model through all stages against those of the CPU, from one noise."""
    schedule = paper_schedule(SPARSE.dense_grid(), 2, *TINY_RATES)
    for name in SAMPLERS:
        spec = replace(SPARSE, learn_sigma=name in DIFFUSION_SAMPLERS)
        model, (x, _, labels) = _randomised(spec, std=0.05), labelled(spec, 2)
        noises = torch.randn(STEPS, *x.shape)
        found = []
        for place in (torch.device("cpu"), device):
            draws = iter(noises.to(place))
            sampler: Callable[..., Tensor] = SAMPLERS[name]
            noise = {} if name in FLOW_SAMPLERS else {"noise": partial(next, draws)}
            called = with_token_schedule(model.to(place), schedule)
            found.append(sampler(called, x.to(place), STEPS, labels=labels.to(place), **noise))
        yield within(f"sampler {name}", "samples", relative_error(found[1], found[0]), SAMPLE_TOLERANCE)


def gradients(device: torch.device) -> Iterator[Row]:
    """Losses and all gradients of a sparse model against those of the CPU."""
    for kind in ("diffusion", "flow"):
        objective = build_objective(ObjectiveConfig(kind=kind))
        spec = replace(SPARSE, learn_sigma=objective.learn_sigma)
        model, (x, _, labels) = _randomised(spec, std=0.05), labelled(spec, 2)
        u, noise, found = torch.tensor([0.3, 0.7]), torch.randn(x.shape), []
        for place in (torch.device("cpu"), device):
            own = model.to(place)
            own.zero_grad()
            loss = objective.loss(own, x.to(place), u.to(place), noise.to(place), labels=labels.to(place)).mean()
            loss.backward()
            found.append((loss.detach().cpu(), torch.cat([_gradient(each).flatten().cpu() for each in own.parameters()])))
        for metric, (one, other) in zip(("loss", "gradients"), zip(*found, strict=True), strict=True):
            yield within(f"objective {kind}", metric, relative_error(other, one), GRADIENT_TOLERANCE)


def _gradient(weight: Tensor) -> Tensor:
    if weight.grad is None:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has no gradient")
    return weight.grad


def tables(device: torch.device) -> Iterator[Row]:
    """Tables on the device, and what tells which cells belong together, bit for bit those of the CPU."""
    dense, sparse, cpu = (
        TINY.dense_grid(),
        paper_schedule(TINY.dense_grid(), 2, *TINY_RATES).stages[0].grid,
        torch.device("cpu"),
    )
    tokens = torch.arange(float(dense.tokens)).view(1, dense.t, -1, 1)

    def found(place: torch.device) -> dict[str, Tensor]:
        positions = {
            f"{name}, {_short(dtype)}": table
            for dtype in TOLERANCES
            for name, table in (
                ("spatial positions", spatial_positions(dense.h, dense.w, sparse.h, sparse.w, 144, place, dtype)),
                ("temporal positions", temporal_positions(dense.t, sparse.t, 144, place, dtype)),
            )
        }
        pooled = pool(tokens.to(place), dense, sparse)
        return positions | {"frequencies": wave_frequencies(128, place), "upsampled": upsample(pooled.round(), sparse, dense)}

    for (name, one), other in zip(found(cpu).items(), found(device).values(), strict=True):
        equal = torch.equal(one, other.cpu())
        yield Row(
            "tables", name, "equal" if equal else f"differs by {relative_error(other, one):.3g}", ok=equal, note="bit for bit"
        )


def _randomised(spec: ModelSpec, std: float = 0.2, **options: Any) -> DiffusionTransformer:
    """A model of random weights, also where the initialisation has zeros."""
    model = DiffusionTransformer(spec, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model


def _model(spec: ModelSpec, weights: dict, device: torch.device, dtype: torch.dtype) -> DiffusionTransformer:
    model = DiffusionTransformer(spec).eval()
    model.load_state_dict(weights)
    return model.to(device, dtype)


def options(config: dict) -> dict[str, Any]:
    """What the weights do not show, from the constructor's arguments of the public model."""
    grid = {"sparse_grid": (1, config["semantic_size"], config["semantic_size"])} if "semantic_size" in config else {}
    classes = {} if config.get("extras") == 1 else {"num_classes": config["num_classes"]}
    return {"num_heads": config["num_heads"], **grid, **classes}


def layout_of(config: dict) -> str:
    """The layout that SparseDiT's arguments describe."""
    group = "".join(f"{count}{kind}" for count, kind in zip(config["dumbbell_group"], "MSRD", strict=True) if count)
    parts = ((config["num_poolingformer"], "P"), (config["num_dumbbell"], f"({group})"), (config["num_normal_block"], "D"))
    return " ".join(f"{count}{what}" for count, what in parts if count)


def _channels_first(x: Tensor) -> Tensor:
    """Stored (B,T,C,H,W) or (B,C,H,W) → (B,C,T,H,W)."""
    return x[:, :, None] if x.ndim == 4 else rearrange(x, "b t c h w -> b c t h w")


def _as_stored(out: Tensor, expected: Tensor) -> Tensor:
    return out[:, :, 0] if expected.ndim == 4 else rearrange(out, "b c t h w -> b t c h w")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
