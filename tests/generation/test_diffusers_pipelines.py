"""Samples of converted models are those of the pipelines of diffusers that they come from: real pipeline objects, tiny ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, LattePipeline, PixArtAlphaPipeline
from models.convert.diffusers_models import latte, pixart
from PIL import Image
from text.tiny import CAPTIONS, tiny_text_encoder
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from sparsevid.cli import main
from sparsevid.diffusion.samplers import spaced_timesteps
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.text.encoder import TextEncoder

STEPS = 4  # 333 timesteps apart
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
PROMPTS = [CAPTIONS[2], CAPTIONS[3], "A yellow frog "]  # of different lengths
NEGATIVE = "a wide road"
TOLERANCE = 2e-5  # of float32, after four steps


class Ddim(DDIMScheduler):
    """diffusers' own at timesteps 0, 333, 666, 999: it takes the distance of two from the number of steps."""

    def set_timesteps(self, count: int, device=None) -> None:
        super().set_timesteps(count, device)
        self.num_inference_steps = count - 1


class Dpm(DPMSolverMultistepScheduler):
    """diffusers' own at the same timesteps, with the step onto timestep 0 of first order."""

    def set_timesteps(self, count: int, device=None) -> None:
        super().set_timesteps(timesteps=spaced_timesteps(count)[::-1], device=device)

    def step(self, output: Tensor, timestep: Tensor, *args, **options):
        if timestep == self.timesteps[-2]:
            self.lower_order_nums = 0
        return super().step(output, timestep, *args, **options)


SCHEDULERS = {
    "ddim": lambda: Ddim(**LINEAR, clip_sample=False, timestep_spacing="linspace"),
    "dpm++": lambda: Dpm(**LINEAR, algorithm_type="dpmsolver++", solver_order=2),
}


def both(folder: Path, kind: type, transformer: torch.nn.Module):
    """A pipeline of diffusers, and what ours makes of its folder."""
    tiny_text_encoder(folder / "t5", channels=10)
    torch.manual_seed(0)
    theirs = kind(
        tokenizer=AutoTokenizer.from_pretrained(folder / "t5"),
        text_encoder=T5EncoderModel.from_pretrained(folder / "t5"),
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4),
        transformer=transformer,
        scheduler=DDIMScheduler(**LINEAR),
    )
    theirs.save_pretrained(folder / "pipeline")
    assert main(["convert", str(folder / "pipeline"), str(folder / "ours")]) == 0
    theirs.set_progress_bar_config(disable=True)
    return theirs, VideoPipeline.from_pretrained(folder / "ours", device="cpu")  # which needs to be told of nothing else


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return both(tmp_path_factory.mktemp("pixart"), PixArtAlphaPipeline, pixart(sample_size=8, num_layers=4))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return both(tmp_path_factory.mktemp("latte"), LattePipeline, latte(sample_size=8))


@torch.no_grad()
def run(theirs, prompts: list[str], noise: Tensor, sampler: str, guidance: float, **options) -> Tensor:
    """Latents (B, C, T, H, W) of their pipeline from this noise."""
    theirs.scheduler = SCHEDULERS[sampler]()
    options |= {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": "latent", "height": 8, "width": 8}
    if isinstance(theirs, PixArtAlphaPipeline):
        return theirs(prompts, latents=noise[:, :, 0], use_resolution_binning=False, **options).images[:, :, None]
    return theirs(prompts, latents=noise, video_length=noise.shape[2], **options).frames


def difference(pair, prompts: list[str], sampler: str, guidance: float, theirs: dict | None = None, **ours) -> float:
    """The largest one of the latents, as a share of the largest latent.

    Args:
        theirs, ours: further options of the two pipelines.
    """
    model, indices = pair[1], range(len(prompts))
    sampling = model.sampling(prompts=prompts, sampler=sampler, steps=STEPS, guidance=guidance, **ours)
    found = model.denoise(indices, sampling)
    (noise,) = model.noises([indices], sampling)
    expected = run(pair[0], prompts, noise.start(), sampler, guidance, **(theirs or {}))
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_images_of_a_batch_of_prompts(images, sampler):
    """Measured: 2e-6."""
    assert difference(images, PROMPTS, sampler, 4.5) < TOLERANCE
    assert difference(images, PROMPTS, sampler, 1.0) < TOLERANCE
    assert difference(images, PROMPTS, sampler, 4.5, {"negative_prompt": NEGATIVE}, negative=NEGATIVE) < TOLERANCE
    assert difference(images, PROMPTS, sampler, 4.5, negative=NEGATIVE) > 0.01


@torch.no_grad()
def test_the_null_of_the_original_is_the_file_s_under_the_prompt_s_mask(images, tmp_path):
    """Of their pipeline, which has none, by features and masks that are given."""
    theirs, ours = images
    spec = replace(ours.model.spec, null_caption=True)
    model = DiffusionTransformer(spec).eval()
    null = torch.randn(1, spec.text_tokens, spec.text_channels, generator=torch.Generator().manual_seed(3))
    model.load_state_dict({**ours.model.state_dict(), "y_embedder.y_embedding": null[0]})
    model.save_pretrained(tmp_path)
    source = str(ours.prompts.source)
    original = VideoPipeline.from_pretrained(tmp_path, autoencoder=ours.autoencoder, text_encoder=source, device="cpu")
    text, mask, *_ = theirs.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    given = {"negative_prompt": None, "prompt_embeds": text, "prompt_attention_mask": mask}
    given["negative_prompt_embeds"] = null.expand(len(text), -1, -1)

    def compared(heard: Tensor, **options) -> float:
        sampling = original.sampling(prompts=PROMPTS, steps=STEPS, guidance=4.5, **options)
        (noise,) = original.noises([range(3)], sampling)
        expected = run(theirs, None, noise.start(), "ddim", 4.5, **given, negative_prompt_attention_mask=heard)
        return ((original.denoise(range(3), sampling) - expected).abs().max() / expected.abs().max()).item()

    assert compared(mask) < TOLERANCE  # which is what such a file means by itself
    assert compared(torch.ones_like(mask), null_mask="own") < TOLERANCE
    assert compared(mask, null_mask="own") > 0.01
    encoded = {"null_caption": "encoded", "null_mask": "own"}
    assert difference((theirs, original), PROMPTS, "ddim", 4.5, **encoded) < TOLERANCE


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_videos_by_the_public_pipeline_s_convention(videos, sampler):
    """Measured: 2e-6. Its batch changes a clip; masked prompts, ours, are another thing."""
    heard = {"padding": "heard"}
    assert difference(videos, PROMPTS[:1], sampler, 7.5, **heard) < TOLERANCE
    assert difference(videos, PROMPTS, sampler, 7.5, **heard) < TOLERANCE
    assert difference(videos, PROMPTS[2:], sampler, 7.5, {"negative_prompt": NEGATIVE}, negative=NEGATIVE, **heard) < TOLERANCE
    assert difference(videos, PROMPTS, sampler, 7.5) > 0.01


def test_a_single_prompt_without_guidance_is_the_same_by_both_conventions(videos):
    assert difference(videos, PROMPTS[:1], "ddim", 1.0) < TOLERANCE
    assert difference(videos, PROMPTS[:1], "ddim", 1.0, padding="heard") < TOLERANCE


@torch.no_grad()
def test_features_are_those_of_their_pipelines(images, videos):
    for theirs, ours in (images, videos):
        encoded = TextEncoder.from_pretrained(ours.prompts.source, device="cpu")(PROMPTS, padding=True)
        text, *others = theirs.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        if isinstance(theirs, PixArtAlphaPipeline):
            assert torch.equal(encoded.text, text) and torch.equal(encoded.mask, others[0] != 0)
        else:  # which gives zeros behind a prompt's own tokens
            assert torch.equal(encoded.text * encoded.mask[..., None], text)


def test_a_converted_pipeline_knows_where_its_encoder_lies(images, tmp_path, capsys):
    """Also as a sparse model made of it; and says so where nothing lies there any more."""
    folder = Path(images[1].prompts.source)
    line = ["--prompts", *PROMPTS, "--num", "1", "--batch", "1", "--steps", "2", "--format", "png", "--device", "cpu", "--out"]
    options = ["--to-sparse", "1P 1(1M1R1D)", "--sparse-grid", "1", "2", "2"]
    assert main(["convert", str(folder.parent / "ours"), str(tmp_path / "sparse"), *options]) == 0
    assert main(["sample", str(tmp_path / "sparse"), *line, str(tmp_path / "samples")]) == 0
    with Image.open(tmp_path / "samples" / "000000.png") as image:
        assert image.text["Title"] == PROMPTS[0]
    folder.rename(tmp_path / "moved")
    line = ["--autoencoder", f"kl:{tmp_path / 'moved'}", *line]
    try:
        assert main(["sample", str(tmp_path / "sparse"), *line, str(tmp_path / "none")]) == 2
        assert f"there is no text encoder in {folder}, as the model's should be" in capsys.readouterr().err
        given = ["--text-encoder", str(tmp_path / "moved")]
        assert main(["sample", str(tmp_path / "sparse"), *given, *line, str(tmp_path / "samples")]) == 0
    finally:
        (tmp_path / "moved").rename(folder)
