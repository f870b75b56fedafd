"""Runs with captions: what the model is told, who is told nothing, and that all that holds for classes holds for text."""

import pytest
import torch
from safetensors.torch import load_file
from training.captions import CHANNELS, TOKENS

from sparsevid.models.convert.diffusers_names import NULL_CAPTION
from sparsevid.models.text import null_caption
from sparsevid.runs.checkpoints import checkpoint_path
from sparsevid.training.trainer import Trainer


def told_of(trainer: Trainer) -> list[dict]:
    """What the model is told in every later call, beside latents and times."""
    calls = []
    trainer.engine.module.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls


@pytest.mark.parametrize("images", [0, 1])
def test_the_model_hears_captions_of_clips_and_of_stills(tiny_text, images):
    trainer = Trainer(tiny_text(f"data.images={images}", "objective.label_dropout=0.5", "train.steps=3")[0])
    spec, cache = trainer.spec, trainer.captions.features.cache
    assert (spec.conditioned_on, spec.text_channels, spec.text_tokens, spec.num_classes) == ("text", CHANNELS, TOKENS, 0)
    calls = told_of(trainer)
    trainer.train()
    null = cache.null()
    captions = [cache.read([index]) for index in range(1, len(cache.captions))]
    heard, dropped = set(), 0
    assert len(calls) == 3
    for call in calls:
        shape = (4, 2) if images else (4,)
        assert call["text"].shape == (*shape, TOKENS, CHANNELS) and call["text_mask"].shape == (*shape, TOKENS)
        assert "labels" not in call
        for text, mask in zip(call["text"].view(-1, TOKENS, CHANNELS), call["text_mask"].view(-1, TOKENS), strict=True):
            if torch.equal(text, null.text[0]):
                assert torch.equal(mask, null.mask[0])
                dropped += 1
                continue
            (number,) = [n for n, each in enumerate(captions) if torch.equal(text, each.text[0])]
            assert torch.equal(mask, captions[number].mask[0])
            heard.add(number)
    assert heard == {0, 1, 2} and 2 <= dropped <= 6 * (1 + images) + 4


def test_no_prompt_is_kept_in_every_checkpoint_and_average_as_it_was(tiny_text):
    config, _ = tiny_text("train.precision=bfloat16", "train.steps=2", "monitor.validate_every=2", "monitor.validate_clips=2")
    trainer = Trainer(config)
    trainer.train()
    null = trainer.captions.null()
    for part in ("model", "ema"):
        held = load_file(checkpoint_path(config.folder, 2) / part / "model.safetensors")[NULL_CAPTION]
        assert torch.equal(held, null.text[0])  # in float32, whatever the model computes in
    monitored = null_caption(trainer.monitor.pipeline.model)
    assert torch.equal(monitored[0], null.text) and torch.equal(monitored[1], null.mask)
