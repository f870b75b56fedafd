"""Memory of training: what autograd keeps, to the percent; what a process takes, within 15 %; what follows from it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from sparsity.training_memory import GIVES_BACK

from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.cost import parameter_count
from sparsevid.sparsity.memory import Sharding, _parameters_by_part, activation_memory, most_activations, rank_memory
from sparsevid.sparsity.spec import ModelSpec

SIZES = {"hidden_size": 32, "num_heads": 4, "input_size": (4, 16, 16)}
SPECS = {
    "dense": ModelSpec("4D", **SIZES),
    "pooled": ModelSpec("2P 2D", **SIZES, num_classes=3),
    "windows": ModelSpec("1P 1(1M2S1R1D) 1D", sparse_grid=(2, 5, 5), **SIZES),
    "frames": ModelSpec("1(1M2S1R1D) 1D", sparse_grid=(4, 8, 8), **SIZES),
    "differences": ModelSpec("1P 2(1M1S1R1D)", sparse_grid=(1, 4, 4), residual_upsampling=True, **SIZES),
    "text": ModelSpec("1P 2(1M1S1R1D)", sparse_grid=(2, 5, 5), text_channels=24, text_tokens=20, **SIZES),
    "text, as PixArt": ModelSpec(
        "1P 1M2S1R1D",
        sparse_grid=(4, 8, 8),
        merge_text="sparse",
        text_channels=48,
        text_tokens=9,
        shared_modulation=True,
        **SIZES,
    ),
    "images": ModelSpec("1P 1(1M2S1R1D) 1D", 32, 4, input_size=(1, 16, 16), sparse_grid=(1, 5, 5)),
}


def kept_by_autograd(spec: ModelSpec, clips: int, precision: str, images: int = 0, **options) -> int:
    """Bytes that a forward leaves to the backward pass, each storage once, weights not counted."""
    model = DiffusionTransformer(spec, **options).to(getattr(torch, precision))
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    seen: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # so that no address is given out again
        return tensor

    frames, *sides = spec.input_size
    x = torch.randn(clips, spec.in_channels, frames + images, *sides)
    told = {}
    if spec.num_classes:
        told = {"labels": torch.zeros(clips, dtype=torch.long)}
    if spec.text_channels:
        shape = (clips, 1 + images, spec.text_tokens) if images else (clips, spec.text_tokens)
        text = torch.randn(*shape, spec.text_channels).to(getattr(torch, precision))
        told = {"text": text, "text_mask": torch.ones(shape, dtype=torch.bool)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x.to(getattr(torch, precision)), torch.zeros(clips), images=images, **told)
    return sum(seen.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SPECS)
def test_activations_are_what_autograd_keeps(name, precision):
    spec = SPECS[name]
    *layers, head = activation_memory(spec, 2, precision=precision)
    counted = sum(each.kept for each in layers) + head.kept - activation_head(spec, precision)
    assert counted == pytest.approx(kept_by_autograd(spec, 2, precision), rel=0.03)


def activation_head(spec: ModelSpec, precision: str) -> int:
    """What the head's count has of the loss, which the forward alone does not make."""
    twelve, one = (activation_memory(replace(spec, in_channels=count), 2, precision=precision)[-1].kept for count in (5, 4))
    grown = 2 * spec.dense_grid().tokens * spec.patch_size**2 * 2 * (4 if precision == "float32" else 2)  # of the output
    return (twelve - one - grown) * spec.in_channels


def test_activations_of_stills_and_of_plain_products_are_counted_too():
    for name, options in product(("windows", "text"), ({"images": 2}, {"attention": "math"})):
        spec = SPECS[name]
        layers = activation_memory(spec, 2, **options)
        counted = sum(each.kept for each in layers) - activation_head(spec, "float32") * (1 + options.get("images", 0) / 4)
        assert counted == pytest.approx(kept_by_autograd(spec, 2, "float32", **options), rel=0.05), options


def test_memory_grows_with_clips_and_tokens_and_not_where_layers_are_computed_again():
    spec = SPECS["windows"]
    one, two = (activation_memory(spec, clips) for clips in (1, 2))
    assert [2 * each.kept for each in one] == [each.kept for each in two]
    few, many = (most_activations(activation_memory(spec, 1, grid=grid)) for grid in ((1, 2, 2), (4, 8, 8)))
    assert few < many
    again = activation_memory(spec, 1, checkpoint_layers="PMSRD")
    plain = activation_memory(spec, 1)
    assert all(a.kept + a.again == b.kept and a.kept < b.kept for a, b in zip(again[1:-1], plain[1:-1], strict=True))
    assert most_activations(again) < most_activations(plain)
    half = activation_memory(spec, 1, precision="bfloat16")
    assert all(2 * a.work == b.work for a, b in zip(half, plain, strict=True))


@pytest.mark.parametrize("name", SPECS)
def test_each_parameter_is_in_one_part(name):
    """That of its layer, of the head, or of what comes before the layers."""
    model = DiffusionTransformer(SPECS[name])
    parts = [model.x_embedder, *model.blocks, model.final_layer]
    own = [sum(each.numel() for each in part.parameters()) for part in parts]
    own[0] = sum(each.numel() for each in model.parameters()) - sum(own[1:])
    assert _parameters_by_part(SPECS[name]) == own


def test_sharding_divides_what_each_stage_says():
    spec, options = SPECS["dense"], {"precision": "bfloat16"}
    count, layers = parameter_count(spec), activation_memory(SPECS["dense"], 1, precision="bfloat16")
    found = [rank_memory(spec, layers, Sharding(stage, 4, bucket=count), **options) for stage in range(4)]
    quarter = -(-count // 4)
    assert [each.weights for each in found] == [6 * count, *[2 * count + 4 * quarter] * 2, 6 * quarter]
    assert [each.gradients for each in found] == [2 * count, 2 * count, 2 * quarter, 2 * quarter]
    assert [each.optimizer for each in found] == [8 * count, *[8 * quarter] * 3]
    assert [each.average for each in found] == [4 * count, *[4 * quarter] * 3]
    offloaded = rank_memory(spec, layers, Sharding(2, 4, bucket=count, offload_optimizer=True), **options)
    assert offloaded.on_host >= 16 * quarter and offloaded.most <= found[2].most - 16 * quarter
    aside = rank_memory(spec, layers, Sharding(), average_on_host=True, **options)
    assert found[0].most - aside.most == aside.on_host == 4 * count
    assert found[0].most <= sum([found[0].weights, found[0].gradients, found[0].optimizer, found[0].average,
                                 found[0].activations, max(found[0].buffers, 4 * count)])  # fmt: skip
    many = rank_memory(spec, layers, Sharding(), accumulation=2, **options)
    assert many.most >= found[0].most


ACTIVE = {"hidden_size": 128, "num_heads": 4, "input_size": (16, 32, 32)}
HEAVY = {"hidden_size": 512, "num_heads": 8, "input_size": (4, 16, 16)}
DENSE, SPARSE = {"layout": "4D", **ACTIVE}, {"layout": "2P 2(1M2S1R1D)", "sparse_grid": (4, 6, 6), **ACTIVE}
WEIGHTY = {"layout": "2P 1(1M2S1R1D)", "sparse_grid": (1, 4, 4), **HEAVY}
CASES = [
    {"spec": DENSE, "clips": 1},
    {"spec": DENSE, "clips": 1, "checkpoint_layers": "D"},
    {"spec": SPARSE, "clips": 1},
    {"spec": SPARSE, "clips": 1, "checkpoint_layers": "RD"},
    {"spec": {"layout": "6D", **HEAVY}, "clips": 2},
    {"spec": {"layout": "6D", **HEAVY}, "clips": 2, "accumulation": 2},
    {"spec": WEIGHTY, "clips": 2},
    {"spec": WEIGHTY, "clips": 2, "train": {"optimizer": "sgd"}},
    *({"spec": WEIGHTY, "clips": 2, "train": {"zero_stage": stage}} for stage in (1, 2, 3)),
]


def estimate(case: dict) -> int:
    """What `rank_memory` says of a case. On a CPU only the part of a bucket counts that is written to."""
    spec, train = ModelSpec(**case["spec"]), case.get("train", {})
    layers = activation_memory(spec, case["clips"], checkpoint_layers=case.get("checkpoint_layers", ""))
    sharding = Sharding(train.get("zero_stage", 0), bucket=parameter_count(spec))
    options = {"optimizer": train.get("optimizer", "adamw"), "accumulation": case.get("accumulation", 1)}
    return rank_memory(spec, layers, sharding, **options).most


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peaks of memory as Linux tells them")
def test_training_takes_as_much_memory_as_is_counted():
    """Steps of the engine, average included: the peak of a process above what it held before, in turns in one process."""
    child = Path(__file__).with_name("training_memory.py")
    done = subprocess.run(
        [sys.executable, child, json.dumps(CASES)], env={**os.environ, **GIVES_BACK}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peaks = [int(line) for line in done.stdout.split("\n") if line.isdigit()]
    ratios = [estimate(case) / peak for case, peak in zip(CASES, peaks, strict=True)]
    print([f"{each:.3f}" for each in ratios])
    assert all(0.85 <= each <= 1.15 for each in ratios), ratios
