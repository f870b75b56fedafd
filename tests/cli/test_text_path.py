"""From captions to samples by commands alone: what prompts ask for is what is seen."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs transformers (extra `text`)")

from PIL import Image
from text.tiny import tiny_text_encoder

from sparsevid.cli import main

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
RUN = """
name: colours
output: {folder}
model: {{layout: 1P 1(1M1S1R1D), hidden_size: 32, num_heads: 2, patch_size: 1, mlp_ratio: 2.0}}
schedule: {{r_min: 0.3, r_max: 0.75}}
data: {{card: {folder}/card.yaml, root: {folder}/tree, captions: {folder}/captions, frames: 1, size: [16, 16]}}
text: {{tokens: 6}}
autoencoder: {{patch: 4, channels: 12}}
objective: {{kind: flow, label_dropout: 0.2}}
train: {{steps: {steps}, global_batch: 12, optimizer: muon, lr: 2.0e-2, warmup: 5, ema_decay: 0.9, checkpoint_every: {steps}}}
sample: {{steps: 8, guidance: 1.5}}
"""


def path(folder: Path, steps: int) -> dict[str, np.ndarray]:
    """Pictures of colours are made, their captions encoded, a model trained; of each prompt the mean colour of samples."""
    tree, noise = folder / "tree", np.random.default_rng(0)
    tree.mkdir()
    for number in range(24):
        name = list(COLOURS)[number % 3]
        pixels = np.clip(COLOURS[name] + noise.normal(0, 12, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tree / f"{number}.png")
        (tree / f"{number}.txt").write_text(f"a {name} picture")
    (folder / "card.yaml").write_text('name: colours\ntrees: ["*.png"]\nmedia: image\ncaptions: {rule: beside}\n')
    tiny_text_encoder(folder / "t5", [f"a {name} picture" for name in COLOURS])
    encoded = ["--root", tree, "--encoder", folder / "t5", "--tokens", 6, "--device", "cpu", "--out", folder / "captions"]
    assert main(["encode_captions", *map(str, (folder / "card.yaml", *encoded))]) == 0
    (folder / "run.yaml").write_text(RUN.format(folder=folder, steps=steps))
    assert main(["train", str(folder / "run.yaml")]) == 0
    prompts = [f"a {name} picture" for name in COLOURS]
    sampled = ["--prompts", *prompts, "--num", "9", "--format", "png", "--device", "cpu", "--out", str(folder / "samples")]
    assert main(["sample", str(folder / "colours"), *sampled]) == 0
    record = json.loads((folder / "samples" / "samples.json").read_text())
    assert record["settings"]["prompts"] == prompts and record["settings"]["null_caption"] == "file"
    pictures = [np.asarray(Image.open(folder / "samples" / f"{number:06d}.png"), float) for number in range(9)]
    return {name: np.stack(pictures[place::3]).mean(axis=(0, 1, 2)) for place, name in enumerate(COLOURS)}


def test_commands_lead_from_captions_to_samples(tmp_path):
    assert all(colour.shape == (3,) for colour in path(tmp_path, steps=2).values())


@pytest.mark.slow
def test_samples_have_the_colour_that_their_prompt_names(tmp_path):
    for name, colour in path(tmp_path, steps=150).items():
        distances = {other: np.linalg.norm(colour - values) for other, values in COLOURS.items()}
        assert min(distances, key=distances.get) == name, (name, colour)
