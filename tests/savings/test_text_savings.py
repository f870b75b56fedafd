"""What holds for every saving holds for models of text, whose layers do one thing more."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from every import TABLE, all_options, made
from models.text_models import CHANNELS, MASK, TOKENS, prompts
from parity import disturbed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparsevid.diffusion.null_text import NullText
from sparsevid.diffusion.samplers import euler, sampler_times
from sparsevid.diffusion.wrappers import with_guidance, with_token_schedule
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import saved
from sparsevid.savings.tally import Tally
from sparsevid.sparsity.schedule import paper_schedule
from sparsevid.sparsity.spec import ModelSpec

VIDEO = ModelSpec(
    "2P 1(1M2S1R2D)", 24, 2, (4, 8, 8), sparse_grid=(2, 2, 2), learn_sigma=False,
    text_channels=CHANNELS, text_tokens=TOKENS, shared_modulation=True,
)  # fmt: skip
SPARSE_LISTEN = replace(VIDEO, merge_text="sparse")
NOTHING = [f"{name}:{options}" for name, line in TABLE.items() for options in line.nothing[:1]]
STEPS = 4
FAST = ("steps:every=2", "pab:every=2", "guidance:sparse=off", "static:every=1")  # of each point one; others are of a kind


def marked(texts: Sequence[str]) -> list:
    return [text if text in FAST else pytest.param(text, marks=pytest.mark.slow) for text in texts]


@cache
def network(spec: ModelSpec) -> DiffusionTransformer:
    model = DiffusionTransformer(spec, attention="math")
    model.load_state_dict(disturbed(spec).state_dict())
    return model.eval()


@torch.no_grad()
def sample(spec: ModelSpec, texts: Sequence[str] | None, tally: Tally | None = None, prepared: bool = True) -> Tensor:
    """Two clips of a model, guided, by a token schedule, in these savings; None: nothing of them is called."""
    model = network(spec)
    if prepared:
        given = {"text": model.prepare_text(prompts(), MASK)}
        null = NullText(model.prepare_text(prompts(seed=5)[:1]))
    else:
        given, null = {"text": prompts(), "text_mask": MASK}, NullText(prompts(seed=5)[:1])
    called = model
    if texts is not None:
        called = saved(model, [made(text, spec) for text in texts], sampler_times("euler", STEPS), seed=3, tally=tally)
    called = with_token_schedule(called, paper_schedule(spec.dense_grid(), 2, 0.3, 0.8))
    x = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with FlopCounterMode(display=False) as counter:
        clips = euler(with_guidance(called, 2.0, null_text=null), x, STEPS, **given)
    if tally is not None:
        assert 2 * tally.macs == pytest.approx(counter.get_total_flops(), rel=1e-3)
    return clips


@pytest.mark.parametrize("text", marked(NOTHING))
def test_what_leaves_nothing_out_gives_the_same_bits(text):
    assert torch.equal(sample(VIDEO, [text]), sample(VIDEO, None))


@pytest.mark.parametrize("spec", [VIDEO, SPARSE_LISTEN], ids=["dense tokens listen", "sparse tokens listen"])
@pytest.mark.parametrize("text", marked(all_options(VIDEO)))
def test_counted_equals_counted(text, spec):
    """By PyTorch's count too, also where an M is left out whose dense tokens listen all the same."""
    found, whole = Tally(), Tally()
    clips = sample(spec, [text], found)
    assert clips.isfinite().all() and not torch.equal(clips, sample(spec, [], whole))
    assert found.macs < whole.macs


@pytest.mark.slow
def test_prompts_that_are_not_prepared_are_counted_in_every_call():
    once, always = Tally(), Tally()
    clips = [sample(VIDEO, ["static:every=2"], tally, prepared) for tally, prepared in ((once, True), (always, False))]
    torch.testing.assert_close(*clips)
    assert once.macs < always.macs
