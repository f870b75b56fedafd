"""What samples of classes take, samples of prompts take: savings, graphs, compiled layers, calibration."""

from dataclasses import replace

import pytest
import torch
from generation.prompted import PROMPTS, TEXT, write_text_checkpoint
from parity import relative_error

from sparsevid.cli import run_tool
from sparsevid.diffusion.samplers import ddim
from sparsevid.generation.networks import Networks
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.graphs import Captured, GraphedModel
from sparsevid.savings.tally import Tally

SAVINGS = (
    "static:every=2", "guidance:every=2,sparse=on", "merging:ratio=0.5", "steps:every=2", "taylor:every=2", "pab:every=2",
    "foresight:threshold=100", "first_block:threshold=100", "faster:every=2,null_every=2", "guidance:sparse=off",
)  # fmt: skip
FAST = SAVINGS[:3]  # an attention's output, a half, tokens; others are of a kind
GUIDED = {"prompts": PROMPTS, "guidance": 3.0, "steps": 6}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_text_checkpoint(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def pipeline(checkpoint) -> VideoPipeline:
    return VideoPipeline.from_pretrained(checkpoint, device="cpu")


def latents_of(pipeline: VideoPipeline, tally: Tally | None = None, **options) -> torch.Tensor:
    return pipeline.denoise([0, 1, 2], pipeline.sampling(**GUIDED | options), tally=tally)


@pytest.mark.parametrize("padding", ["masked", pytest.param("heard", marks=pytest.mark.slow)])
@pytest.mark.parametrize("text", [text if text in FAST else pytest.param(text, marks=pytest.mark.slow) for text in SAVINGS])
def test_savings_leave_something_out(text, padding, pipeline):
    less, whole = Tally(), Tally()
    saved = latents_of(pipeline, less, savings=text, padding=padding)
    plain = latents_of(pipeline, whole, padding=padding)
    assert less.macs < whole.macs and saved.isfinite().all() and not torch.equal(saved, plain)


@pytest.mark.parametrize("padding", ["masked", "heard"])
def test_replayed_forwards_read_the_prompts_of_each_batch(pipeline, padding):
    """A capture that computes again stands for a GPU's: it reads the memory that calls are copied to."""

    def capture(function, device, pool):
        output = function()
        return Captured(output, lambda: output.copy_(function()), pool or "pool")

    settings = pipeline.sampling(**GUIDED | {"batch": 2, "padding": padding})
    networks, graphed = Networks(pipeline.model, compile=False), []
    networks.graphs = GraphedModel(pipeline.model, capture=capture)
    schedule = pipeline.token_schedule(settings)
    for first in (0, 1):
        indices = [first, first + 1]
        condition = pipeline.condition(indices, settings)
        plain = pipeline.denoise(indices, settings)
        denoiser = networks.denoiser(settings, schedule, null=condition.null, graphed=True)
        (noise,) = pipeline.noises([indices], settings)
        with torch.inference_mode():
            graphed.append(torch.equal(ddim(denoiser, noise.start(), settings.steps, **condition.given), plain))
    assert graphed == [True, True] and len(networks.graphs) > 0


@pytest.mark.slow
def test_compiled_samples_of_prompts_are_those_of_the_model(tmp_path):
    checkpoint = write_text_checkpoint(tmp_path, replace(TEXT, layout="2D", sparse_grid=None))
    plain, compiled = (VideoPipeline.from_pretrained(checkpoint, device="cpu", compile=each) for each in (False, True))
    compiled.warm_up(compiled.sampling(**GUIDED | {"batch": 3}), [0, 1, 2])
    assert relative_error(latents_of(compiled), latents_of(plain)) < 5e-5


@pytest.mark.gpu
@pytest.mark.parametrize("padding", ["masked", "heard"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_samples_of_prompts_by_cuda_graphs_are_those_without(checkpoint, dtype, padding):
    """Bit for bit, in batches of several sizes; the encoder runs on the GPU."""
    made = {graph: VideoPipeline.from_pretrained(checkpoint, dtype=dtype, graph=graph, device="cuda") for graph in (0, 1)}
    for indices in ([0, 1, 2, 3], [4, 5, 6, 7], [8]):
        settings = made[0].sampling(**GUIDED | {"padding": padding})
        found, expected = (made[graph].denoise(indices, settings) for graph in (1, 0))
        assert torch.equal(found, expected)
    assert len(made[1]._networks.graphs) > 0


@pytest.mark.slow
def test_prompts_in_bfloat16_are_near_those_in_float32(checkpoint, pipeline):
    half = VideoPipeline.from_pretrained(checkpoint, device="cpu", dtype="bfloat16")
    assert relative_error(latents_of(half), latents_of(pipeline)) < 0.1


@pytest.mark.slow
def test_a_model_of_text_is_calibrated_on_prompts(checkpoint, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS), encoding="utf-8")
    line = [str(checkpoint), "--samples", "3", "--steps", "4", "--device", "cpu", "--plot", "off", "--guidance", "2"]
    assert run_tool("calibrate", line) == 2
    assert "needs prompts" in capsys.readouterr().err
    assert run_tool("calibrate", [*line, "--prompts", str(file), "--out", str(tmp_path / "fits")]) == 0
    pipeline = VideoPipeline.from_pretrained(checkpoint, device="cpu")
    saving = f"teacache:threshold=100,fit={tmp_path / 'fits' / 'teacache.json'}"
    tally = Tally()
    latents_of(pipeline, tally, savings=saving, steps=4)
    assert tally.share < 1
