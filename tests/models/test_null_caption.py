"""What a model holds of "no prompt" says itself which of its tokens are heard, and goes where the weights go."""

from dataclasses import replace

import pytest
import torch
from models.text_models import IMAGE, MASK, TOKENS, prompts

from sparsevid.models.text import keep_null_caption, null_caption
from sparsevid.models.transformer import DiffusionTransformer

SPEC = replace(IMAGE, null_caption=True, text_tokens=TOKENS)


def test_features_and_mask_are_given_back_and_saved_with_the_weights(tmp_path):
    model, text, mask = DiffusionTransformer(SPEC), prompts()[1:2], MASK[1:2]
    keep_null_caption(model, text, mask)
    model.save_pretrained(tmp_path)
    for each in (model, DiffusionTransformer.from_pretrained(tmp_path)):
        found, heard = null_caption(each)
        assert torch.equal(found, text * mask[..., None]) and torch.equal(heard, mask)
    keep_null_caption(model, text[0])
    assert torch.equal(null_caption(model)[0], text) and null_caption(model)[1].all()


def test_what_cannot_be_held_is_named():
    model, text = DiffusionTransformer(SPEC), prompts()
    channels = text.shape[-1]
    for given, mask in ((text, None), (text[:1, 1:], None), (text[:1, :, 1:], None), (text[:1], torch.ones(1, TOKENS + 1))):
        with pytest.raises(ValueError, match=rf"'no prompt' has features \({TOKENS}, {channels}\); got "):
            keep_null_caption(model, given, mask)
    with pytest.raises(ValueError, match="no token of 'no prompt' is heard"):
        keep_null_caption(model, text[:1], torch.zeros(1, TOKENS))
    for read in (null_caption, lambda model: keep_null_caption(model, text[:1])):
        with pytest.raises(ValueError, match="its spec has null_caption off"):
            read(DiffusionTransformer(IMAGE))
