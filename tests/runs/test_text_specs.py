"""The spec of a run with captions: what its preset, sizes and captions say, and what does not go together."""

from dataclasses import replace

import pytest

from sparsevid.models.presets import build_spec
from sparsevid.runs.build import TextSize, spec_from_config
from sparsevid.runs.config import ConfigError, load_config
from sparsevid.sparsity.spec import ModelSpec

TEXT = TextSize(tokens=120, channels=4096)
SIZES = ["model.layout=2P 1M1S1R1D 2D", "model.hidden_size=48", "model.num_heads=2", "model.patch_size=1"]


def spec_of(*overrides: str, text: TextSize | None = TEXT, frames: int = 1, side: int = 32, classes: int = 5) -> ModelSpec:
    sizes = {"input_size": (frames, side, side), "in_channels": 4, "num_classes": classes, "learn_sigma": True}
    return spec_from_config(load_config(None, list(overrides)), **sizes, text=text)


@pytest.mark.parametrize(
    ("preset", "frames", "side"),
    [
        ("PixArt-XL/2-256", 1, 32),
        ("SparsePixArt-XL/2-512", 1, 64),
        ("SparsePixArt-XL/2-1024", 1, 128),
        ("Latte-1", 16, 64),
        ("SparseLatte-1", 16, 64),
    ],
)
def test_a_preset_is_kept_as_it_is_but_for_its_null_caption(preset, frames, side):
    spec = spec_of(f"model.preset={preset}", frames=frames, side=side)
    assert spec == replace(build_spec(preset), null_caption=True)


def test_captions_say_what_prompts_are_and_classes_are_names():
    spec = spec_of("model.preset=PixArt-XL/2-256", text=TextSize(17, 512))
    assert (spec.text_tokens, spec.text_channels, spec.num_classes, spec.position_base) == (17, 512, 0, 16)
    own = spec_of(*SIZES, side=8)
    assert (own.conditioned_on, own.null_caption, own.shared_modulation, own.merge_text) == ("text", True, True, "dense")
    assert own.position_base is None and not own.micro_conditions
    other = spec_of(*SIZES, "model.shared_modulation=false", "model.merge_text=sparse", side=8)
    assert other == replace(own, shared_modulation=False, merge_text="sparse")
    classes = spec_of(*SIZES, text=None, side=8)
    assert classes == replace(own, text_channels=0, null_caption=False, shared_modulation=False, num_classes=5)
    assert spec_of(*SIZES, "model.shared_modulation=true", text=None, side=8).shared_modulation


@pytest.mark.parametrize(
    ("overrides", "text", "frames", "said"),
    [
        (["model.preset=PixArt-XL/2-256"], None, 1, "is of text, and data.captions is not given.*encode_captions"),
        (["model.preset=SparseDiT-XL/2"], TEXT, 1, "hears no text: take one of PixArt-XL/2-256.*, or model.layout"),
        (["model.preset=Latte-XL/2"], TEXT, 16, "model.preset = Latte-XL/2 hears no text"),
        (["model.preset=PixArt-XL/2-256"], TEXT, 16, "is of images, and clips have 16 frames.*data.frames=1"),
        (["model.preset=DiT-XL/2"], None, 16, "is of images, and clips have 16 frames"),
        (["model.preset=Latte-1"], TEXT, 1, "is of videos.*, and clips have 1.*PixArt-XL/2-256"),
        ([*SIZES, "model.merge_text=sparse"], None, 1, "model.merge_text = sparse is of models of text"),
        (["model.hidden_size=48"], TEXT, 1, "give model.preset, or all sizes"),
    ],
)
def test_what_does_not_go_together_says_what_to_do(overrides, text, frames, said):
    with pytest.raises(ConfigError, match=said):
        spec_of(*overrides, text=text, frames=frames)
    with pytest.raises(ConfigError, match="model.merge_text = 'both'; accepted are None, dense, sparse"):
        load_config(None, ["model.merge_text=both"])
