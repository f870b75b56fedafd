"""A model of text hears of a prompt what it should, and no more; all that works for classes works for it."""

from dataclasses import asdict, replace

import pytest
import torch
from fake_gpu import fake_gpu
from models.text_models import IMAGE, LENGTHS, MASK, SPARSE, SPECS, TOKENS, T, latents, prompts
from parity import randomise, relative_error

from sparsevid.benchmark.model import plan_cases
from sparsevid.diffusion.null_text import NullText
from sparsevid.diffusion.samplers import euler
from sparsevid.diffusion.wrappers import with_guidance, with_token_schedule
from sparsevid.generation.sampling import Sampling, check_sampling
from sparsevid.models.compiled import with_compiled_layers
from sparsevid.models.graphs import Captured, GraphedModel
from sparsevid.models.inputs import drawn_condition
from sparsevid.models.naive import naive_forward
from sparsevid.models.saving import Tokens
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ObjectiveConfig
from sparsevid.sparsity.schedule import paper_schedule
from sparsevid.sparsity.spec import ADDED, ModelSpec

FAMILIES = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def model_of(spec: ModelSpec, **options) -> DiffusionTransformer:
    model = DiffusionTransformer(spec, **options).eval()
    model.load_state_dict(randomise(DiffusionTransformer(spec)).state_dict())
    return model


@FAMILIES
@torch.no_grad()
def test_prepared_text_gives_the_same_bits_and_is_made_once(spec):
    model, x, text = model_of(spec), latents(spec), prompts()
    made = []
    for name, module in model.named_modules():
        if name.endswith("kv_linear") or name == "y_embedder":
            module.register_forward_hook(lambda *_, name=name: made.append(name))
    prepared = model.prepare_text(text, MASK)
    listeners = [index for index in range(spec.depth) if spec.layer_listens(index)]
    assert made == ["y_embedder", *(f"blocks.{index}.cross_attn.kv_linear" for index in listeners)]
    made.clear()
    for t in (T, T + 1):
        assert torch.equal(model(x, t, text=prepared), model(x, t, text=prepared))
    assert made == []
    assert torch.equal(model(x, T, text=prepared), model(x, T, text=text, text_mask=MASK))


@FAMILIES
@torch.no_grad()
def test_a_batch_of_prompts_of_different_lengths_changes_no_clip(spec):
    model, x, text = model_of(spec), latents(spec), prompts()
    together = model(x, T, text=text, text_mask=MASK)
    for index, length in enumerate(LENGTHS):
        one = slice(index, index + 1)
        alone = model(x[one], T[one], text=text[one, :length])
        assert relative_error(together[one], alone) <= 1e-5
    padded = torch.where(MASK[..., None], text, 1e3)
    assert torch.equal(model(x, T, text=padded, text_mask=MASK), together)
    assert relative_error(model(x, T, text=text), together) > 1e-3  # the public pipeline's way: padding is heard


@torch.no_grad()
def test_the_prompt_matters_in_each_layer_that_listens_and_nowhere_else():
    model, x = model_of(SPARSE), latents(SPARSE)
    listening = [index for index, block in enumerate(model.blocks) if block.cross_attn is not None]
    assert listening == [index for index in range(SPARSE.depth) if index % 2 == 0]
    assert [index for index, block in enumerate(model_of(IMAGE).blocks) if block.cross_attn is not None] == [*range(12)]
    for block in model.blocks:
        if block.cross_attn is not None:
            block.cross_attn.proj.weight.zero_()
    assert torch.equal(model(x, T, text=prompts()), model(x, T, text=prompts(seed=3)))


@torch.no_grad()
def test_whose_tokens_listen_in_m():
    """As docs/architecture.md defines it: dense tokens before they are pooled and gathered from, or sparse ones after."""
    for placement in ("dense", "sparse"):
        spec = replace(IMAGE, layout="1M1R1D", merge_text=placement, transition_positions=False)
        model, x, text = model_of(spec), torch.randn(2, 1, 16, 24), prompts()
        merge, recover, _ = model.blocks
        bias, *heard = model.prepare_text(text, MASK).of_clip()
        shared = torch.randn(2, 6 * 24)
        kept = {}
        handles = [
            block.register_forward_hook(lambda _, given, out, name=name, kept=kept: kept.update({name: (given, out)}))
            for name, block in (("M", merge), ("R", recover))
        ]
        dense, sparse = spec.dense_grid(), model._sparse_grid(None, spec.dense_grid())
        model._layers(
            range(3), Tokens(x), [shared] * 3 + [bias, *heard], dense=dense, sparse=sparse, features=(), kept={},
            saving=None, stills=False,
        )  # fmt: skip
        for handle in handles:
            handle.remove()
        (s, gathered, _), out = kept["M"]
        listening = x + merge.cross_attn(x, bias, heard[0])
        expected = listening if placement == "dense" else x
        assert torch.equal(gathered, expected) and torch.equal(s, model._pool(expected, dense, sparse, False, x.dtype))
        said = () if placement == "dense" else (bias, heard[0])
        assert torch.equal(out, merge(s, expected, shared, text=said))
        assert torch.equal(kept["R"][0][1], expected)


@torch.no_grad()
def test_stills_have_captions_of_their_own_and_do_not_change_the_clip():
    model, x, text = model_of(SPARSE), latents(SPARSE, stills=2), prompts(3)
    mask = MASK[:, None].expand(-1, 3, -1)
    out = model(x, T, text=text, text_mask=mask, images=2)
    clip = model(x[:, :, :4], T, text=text[:, 0], text_mask=MASK)
    assert relative_error(out[:, :, :4], clip) <= 1e-5
    other = text.clone()
    other[:, 2] += 1.0
    moved = (model(x, T, text=other, text_mask=mask, images=2) - out).abs().amax(dim=(0, 1, 3, 4)) > 0
    assert moved.tolist() == [False] * 5 + [True]
    shared = model(x, T, text=text[:, 0], text_mask=MASK, images=2)
    same = text[:, :1].expand(-1, 3, -1, -1)
    assert relative_error(shared, model(x, T, text=same, text_mask=mask, images=2)) <= 1e-5
    assert torch.equal(shared, model(x, T, text=model.prepare_text(text[:, 0], MASK), images=2))


@FAMILIES
def test_every_parameter_gets_a_gradient(spec):
    model = randomise(DiffusionTransformer(spec))
    model(latents(spec), T, text=prompts(), text_mask=MASK).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("spec", [SPARSE, IMAGE.dense()], ids=["sparse", "dense"])
def test_a_fresh_model_gives_zero_and_hears_nothing_yet(spec):
    torch.manual_seed(0)
    model = DiffusionTransformer(replace(spec, null_caption=True))
    text, x = prompts(), latents(spec)
    out, (first,) = model(x, T, text=text, features=[2]), model(x, T, text=text + 1, features=[2])[1].values()
    assert not torch.count_nonzero(out[0]) and torch.equal(out[1][2], first)
    assert 0.5 < model.blocks[0].scale_shift_table.std() * 24**0.5 < 1.5
    assert model.y_embedder.y_embedding.shape == (TOKENS, text.shape[-1]) and model.y_embedder.y_embedding.std() > 0


def test_activation_checkpointing_gives_the_same_gradients():
    gradients = []
    for kinds in ("", "PMSRD"):
        model = model_of(SPARSE, checkpoint_layers=kinds)
        model(latents(SPARSE), T, text=prompts(), text_mask=MASK).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@torch.no_grad()
def test_backends_and_graphs_give_the_same():
    model, x, text = model_of(SPARSE), latents(SPARSE), prompts()
    prepared = model.prepare_text(text, MASK)
    out = model(x, T, text=prepared)
    other = model_of(SPARSE, attention="math")
    assert relative_error(other(x, T, text=text, text_mask=MASK), out) <= 1e-5
    assert relative_error(other(x, T, text=text), model(x, T, text=text)) <= 1e-5
    half = model_of(SPARSE).bfloat16()
    assert relative_error(half(x.bfloat16(), T, text=text, text_mask=MASK).float(), out) <= 5e-2

    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(model(x, T, text=prepared).float(), out) <= 5e-2

    recorded = []

    def capture(function, device, pool):
        recorded.append(function)
        output = function().clone()
        return Captured(output, lambda: output.copy_(function()), pool or "pool")

    with torch.inference_mode():
        graphed = GraphedModel(model, capture=capture)
        for given in (prepared, prepared, model.prepare_text(text + 1, MASK), prepared):
            assert torch.equal(graphed(x, T, text=given), model(x, T, text=given))
        assert len(recorded) == len(graphed) == 1


@torch.no_grad()
def test_on_a_gpu_nothing_crosses_to_the_host_or_from_it():
    with fake_gpu() as traffic:
        with torch.device("cuda"):
            model = DiffusionTransformer(IMAGE).to(torch.bfloat16)
        inputs = latents(IMAGE).to("cuda", torch.bfloat16), T.to("cuda")
        told = {"text": prompts().to("cuda"), "text_mask": MASK.to("cuda")}
        model(*inputs, **told)  # tables of positions go there once
        traffic.clear()
        model(*inputs, **told)
        assert traffic.events == []


@pytest.mark.slow
@torch.no_grad()
def test_compiled_layers_give_the_same():
    model, x = model_of(SPARSE), latents(SPARSE)
    prepared = model.prepare_text(prompts(), MASK)
    torch.compiler.reset()
    assert relative_error(with_compiled_layers(model, "eager")(x, T, text=prepared), model(x, T, text=prepared)) <= 1e-5
    torch.compiler.reset()


def test_saved_and_loaded_is_the_same_model(tmp_path):
    spec = replace(SPARSE, null_caption=True)
    model = randomise(DiffusionTransformer(spec))
    model.save_pretrained(tmp_path)
    again = DiffusionTransformer.from_pretrained(tmp_path, strict=True).eval()
    assert again.spec == spec and torch.equal(again.y_embedder.y_embedding, model.y_embedder.y_embedding)
    x, text = latents(spec), prompts()
    with torch.no_grad():
        assert torch.equal(again(x, T, text=text), model(x, T, text=text))


def test_specs_of_before_are_written_as_before():
    plain = ModelSpec("1P 2(1M2S1R1D) 1D", 24, 2, (4, 8, 8), sparse_grid=(2, 2, 2), num_classes=3)
    assert plain.to_dict().keys() == asdict(plain).keys() - set(ADDED)
    assert SPARSE.to_dict().keys() - plain.to_dict().keys() == {
        "text_channels", "text_tokens", "shared_modulation", "position_base",
    }  # fmt: skip
    for spec in (*SPECS.values(), plain, replace(plain, no_class=False)):
        assert ModelSpec.from_dict(spec.to_dict()) == spec


@torch.no_grad()
def test_sizes_of_pictures_are_conditions_and_follow_from_the_latents():
    model, x, text = model_of(IMAGE), latents(IMAGE), prompts()
    told = torch.tensor([[64.0, 64.0, 1.0]]).expand(2, -1)
    assert torch.equal(model(x, T, text=text), model(x, T, text=text, sizes=told))
    for changed in (told + torch.eye(3)[0], told + torch.eye(3)[1], told + torch.eye(3)[2]):
        assert not torch.equal(model(x, T, text=text), model(x, T, text=text, sizes=changed))


def nulls(model: DiffusionTransformer, heard: str) -> dict[str, NullText]:
    text = prompts(seed=5)[:1]
    mask = MASK[1:]
    prepared = NullText(model.prepare_text(text, mask), heard=heard)
    return {"features": NullText(text, mask, heard=heard), "prepared": prepared}


@pytest.mark.parametrize("heard", ["own", "prompt"])
@pytest.mark.parametrize("form", ["features", "prepared"])
@torch.no_grad()
def test_guidance_is_what_two_calls_give_in_both_conventions(heard, form):
    """Whose mask the half without a prompt has: its own, as diffusers, or the prompt's, as the original PixArt."""
    model, x, text = model_of(IMAGE), latents(IMAGE), prompts()
    null = prompts(seed=5)[:1].expand(2, -1, -1)
    null_mask = MASK[1:].expand(2, -1) if heard == "own" else MASK
    conditional = model(x, T, text=text, text_mask=MASK)
    unconditional = model(x, T, text=null, text_mask=null_mask)
    given = {"text": text, "text_mask": MASK} if form == "features" else {"text": model.prepare_text(text, MASK)}
    sizes = torch.tensor([[64.0, 64.0, 1.0]]).expand(2, -1)
    for channels in (3, 4):
        guided = with_guidance(model, 4.5, None, channels, null_text=nulls(model, heard)[form])(x, T, sizes=sizes, **given)
        expected = conditional.clone()
        difference = conditional[:, :channels] - unconditional[:, :channels]
        expected[:, :channels] = unconditional[:, :channels] + 4.5 * difference
        assert relative_error(guided, expected) <= 1e-5


@torch.no_grad()
def test_prompts_and_no_prompt_of_other_lengths_are_guided():
    model, x, text = model_of(IMAGE), latents(IMAGE), prompts()
    null = torch.randn(1, 2, text.shape[-1], generator=torch.Generator().manual_seed(6))
    guided = with_guidance(model, 2.0, null_text=NullText(null))(x, T, text=text, text_mask=MASK)
    expected = 2 * model(x, T, text=text, text_mask=MASK) - model(x, T, text=null.expand(2, -1, -1))
    assert relative_error(guided[:, :4], expected[:, :4]) <= 1e-5
    for first, second in (
        (NullText(null, heard="prompt"), text),
        (NullText(model.prepare_text(null)), model.prepare_text(text)),
    ):
        with pytest.raises(ValueError, match="tokens"):
            with_guidance(model, 2.0, null_text=first)(x, T, text=second)
    with pytest.raises(ValueError, match="both prepared by the model"):
        with_guidance(model, 2.0, null_text=NullText(null))(x, T, text=model.prepare_text(text))
    with pytest.raises(ValueError, match="heard by the mask of one of own, prompt; got 'mine'"):
        NullText(null, heard="mine")
    with pytest.raises(ValueError, match="null_label of a model of classes, or null_text of one of text"):
        with_guidance(model, 2.0)


@torch.no_grad()
def test_a_sampling_by_a_token_schedule_with_prompts_prepared_once():
    spec = replace(SPARSE, learn_sigma=False)
    model, x, text = model_of(spec), latents(spec), prompts()
    scheduled = with_token_schedule(model, paper_schedule(spec.dense_grid(), 2, 0.3, 0.8))
    null = nulls(model, "own")
    clips = [
        euler(with_guidance(scheduled, 2.0, null_text=null[form]), x, 4, **given)
        for form, given in (
            ("features", {"text": text, "text_mask": MASK}),
            ("prepared", {"text": model.prepare_text(text, MASK)}),
        )
    ]
    assert relative_error(*clips) <= 1e-5


@pytest.mark.parametrize("spec", [SPARSE, replace(SPARSE, text_channels=0, num_classes=3), replace(SPARSE, text_channels=0)])
@torch.no_grad()
def test_a_drawn_condition_is_what_the_model_takes(spec):
    told = drawn_condition(spec, 2, torch.device("cpu"), torch.float32)
    assert list(told) == [name for name in ({"text": "text", "class": "labels"}.get(spec.conditioned_on),) if name]
    assert model_of(spec)(latents(spec), T, **told).isfinite().all()


def test_a_model_of_text_has_no_naive_form_and_is_not_sampled_without_prompts():
    with pytest.raises(ValueError, match="the public Latte and DiT, which have no position_base, shared_modulation, text_ch"):
        naive_forward(DiffusionTransformer(SPARSE.dense()), latents(SPARSE), T)
    with pytest.raises(ValueError, match="which have no"):
        plan_cases(["PixArt-XL/2-256"], against_naive=True)
    assert [case.grid for case in plan_cases(["SparsePixArt-XL/2-256"])] == [None, (1, 10, 10)]
    with pytest.raises(ValueError, match="is of text and needs prompts"):
        check_sampling(Sampling("ddim", 2, 0, 1, (), 1.0, None, None, "off", (), 0.0, (4, 8, 8)), SPARSE, ObjectiveConfig())


@pytest.mark.parametrize(
    ("spec", "call", "reason"),
    [
        (SPARSE, lambda m, x: m(x, T), "is of text and needs text"),
        (SPARSE, lambda m, x: m(x, T, torch.tensor([0, 1]), text=prompts()), "is of text and takes no labels"),
        (SPARSE, lambda m, x: m(x, T, text_mask=MASK), "text_mask was given without text"),
        (SPARSE, lambda m, x: m(x, T, text=prompts()[..., :4]), r"\(B, L, 10\).*got \(2, 7, 4\): are they of the encoder"),
        (SPARSE, lambda m, x: m(x, T, text=prompts()[:1]), "2 clips with 0 stills each .* got prompts for 1 clips"),
        (SPARSE, lambda m, x: m(x, T, text=prompts(3)), "got prompts for 2 clips, 3 each"),
        (SPARSE, lambda m, x: m(x, T, text=prompts(), text_mask=MASK[:, :4]), r"the mask of features .* is \(2, 7\); got"),
        (SPARSE, lambda m, x: m(x, T, text=m.prepare_text(prompts()), text_mask=MASK), "prepared text has its mask"),
        (SPARSE, lambda m, x: m(x, T, text=DiffusionTransformer(IMAGE).prepare_text(prompts())), "prepared by another model"),
        (SPARSE, lambda m, x: m(x, T, text=prompts(), sizes=torch.ones(2, 3)), "micro_conditions off"),
        (replace(SPARSE, text_channels=0), lambda m, x: m(x, T, text=prompts()), "is unconditional and takes no text"),
        (replace(SPARSE, text_channels=0), lambda m, x: m.prepare_text(prompts()), "takes no text"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(spec, call, reason):
    with pytest.raises(ValueError, match=reason):
        call(DiffusionTransformer(spec), latents(spec))
    with pytest.raises(ValueError, match=r"sizes are \(B, 3\)"):
        DiffusionTransformer(IMAGE)(latents(IMAGE), T, text=prompts(), sizes=torch.ones(2, 2))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_classes": 5}, "on classes or on text, not on both"),
        ({"merge_text": "both"}, "merge_text is one of dense, sparse"),
        ({"text_tokens": 0}, "text_tokens at least 1"),
        ({"text_channels": 0, "null_caption": True}, "null_caption belongs to a model of text"),
        ({"micro_conditions": True, "hidden_size": 16}, "multiple of 3"),
        ({"position_base": 0}, "position_base is at least 1"),
        ({"position_scale": float("nan")}, "position_scale above 0"),
        ({"norm_eps": 0.0}, "norm_eps is above 0"),
        ({"frequency_shift": 2}, "frequency_shift 0 or 1"),
    ],
)
def test_specs_that_cannot_be_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        replace(SPARSE, **changes)
