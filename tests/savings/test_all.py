"""What holds for every saving there is."""

import itertools
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from every import (
    FAMILIES,
    LABELS,
    LATTE,
    LINES,
    STEPS,
    TABLE,
    all_options,
    alone,
    counted,
    latents,
    made,
    network,
    options,
    sample,
)
from torch import Tensor

from sparsevid.diffusion.samplers import SAMPLERS, Model, sampler_times
from sparsevid.diffusion.wrappers import with_guidance
from sparsevid.models.compiled import with_compiled_layers
from sparsevid.savings import parse_saving, saved
from sparsevid.savings.base import SavingError, options_of
from sparsevid.savings.options import LIST_WIDTH, SAVINGS, check_together, list_savings, parse_savings
from sparsevid.savings.tally import Tally
from sparsevid.sparsity.spec import ModelSpec

SPARSE = FAMILIES["sparse Latte"]
MODELS = {"dense": LATTE, "sparse": SPARSE}
CASES = [(name, text) for name, spec in MODELS.items() for text in all_options(spec)]
FIXED = [(name, text) for name, spec in MODELS.items() for text in all_options(spec, fixed=True)]
CACHES = [name for name, policy in SAVINGS.items() if policy.family == "cache"]
TEXTS = sorted({text for _, text in CASES})
NOTHING = [f"{name}:{options}" for name, line in TABLE.items() for options in line.nothing]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def applies(text: str, spec: ModelSpec) -> bool:
    """Whether the model has what the saving acts on."""
    return spec.is_sparse or not SAVINGS[text.partition(":")[0]].needs_sparse


def test_every_saving_is_in_the_table():
    assert SAVINGS.keys() <= LINES.keys()
    for name, line in TABLE.items():
        assert SAVINGS[name].name == name and line.nothing and (line.typical or line.sparse)


@cache
def plain(spec: ModelSpec, sampler: str = "euler", **options) -> Tensor:
    """A sampling without anything of savings."""
    return sample(spec, None, sampler, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", NOTHING)
def test_what_leaves_nothing_out_gives_the_same_bits(text, family):
    spec = FAMILIES[family]
    if not applies(text, spec):
        pytest.skip("refused for a model without sparse layers")
    for sampler in SAMPLERS:
        assert torch.equal(sample(spec, [text], sampler, steps=3), plain(spec, sampler, steps=3)), sampler


@pytest.mark.parametrize("text", NOTHING)
def test_what_leaves_nothing_out_gives_the_same_bits_in_bfloat16(text):
    spec = FAMILIES["residual Latte"]
    assert torch.equal(sample(spec, [text], dtype=torch.bfloat16), plain(spec, dtype=torch.bfloat16))


@pytest.mark.parametrize("name, text", CASES)
def test_what_leaves_something_out_changes_clips_and_keeps_them_finite(name, text):
    found = sample(MODELS[name], [text])
    assert found.isfinite().all() and not torch.equal(found, plain(MODELS[name]))


@cache
def tallied(spec: ModelSpec, *texts: str, **options) -> Tally:
    """What a sampling computed by our count, which is PyTorch's."""
    return counted(spec, texts, **options)[1]


@pytest.mark.parametrize("name, text", CASES)
def test_counted_equals_counted(name, text):
    """With guidance, before, in and after its interval."""
    found, everything = (tallied(MODELS[name], *texts, interval=(0.3, 0.8)) for texts in ((text,), ()))
    assert found.macs < everything.macs and found.share <= 1 == everything.share
    assert found.asked == everything.asked


@pytest.mark.parametrize("name", [name for name in SAVINGS if name != "guidance"])
def test_counted_equals_counted_without_guidance(name):
    text = options(SPARSE, name)[0]
    assert tallied(SPARSE, text, guided=False).macs < tallied(SPARSE, guided=False).macs


@pytest.mark.parametrize("family", [name for name in FAMILIES if "DiT" in name])
def test_counted_equals_counted_for_images(family):
    for text in {text.partition(":")[0]: text for text in all_options(FAMILIES[family])}.values():
        tallied(FAMILIES[family], text, sampler="heun", steps=3, interval=(0.3, 0.8))


@pytest.mark.parametrize("name", SAVINGS)
def test_the_first_layer_may_be_one_of_sparse_tokens(name):
    """Also where their grid changes."""
    spec = replace(SPARSE, layout="1M2S1R1D")
    found, whole = (tallied(spec, *texts, interval=(0.3, 0.8)) for texts in ([options(spec, name)[0]], []))
    assert found.macs < whole.macs
    for text in LINES[name].nothing:
        assert torch.equal(sample(spec, [f"{name}:{text}"]), plain(spec))


@pytest.mark.parametrize("name", CACHES)
def test_counted_equals_counted_of_three_that_go_together(name):
    """A cache, merging and guidance, in both orders."""
    cheaper = [] if SAVINGS[name].family == "guidance" or name == "faster" else ["guidance:every=2,sparse=off"]
    text = options(SPARSE, name)[0]
    texts = [text, "merging:ratio=0.5", *cheaper]
    one, other = (tallied(SPARSE, *each, interval=(0.3, 0.8)) for each in (texts, texts[::-1]))
    assert one == other and one.macs < tallied(SPARSE, text, interval=(0.3, 0.8)).macs


@pytest.mark.parametrize("name, text", FIXED)
def test_a_batch_gives_each_clip_what_it_gets_alone(name, text):
    torch.testing.assert_close(sample(MODELS[name], [text]), alone(MODELS[name], [text]), rtol=1e-4, atol=1e-5)


def called(spec: ModelSpec, text: str, *calls: tuple, count: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    """Calls by hand of one saved model, each (clips, side, grid): its output, and the model's own."""
    spec = replace(spec, learn_sigma=False)
    model, times = network(spec), sampler_times("euler", count)
    saving = saved(model, [made(text, spec)], times)
    for (clips, side, grid), u in zip(calls, times, strict=False):
        x, t = latents(spec, clips, side), torch.full((clips,), 999 * u)
        given = {"labels": LABELS[:1].expand(clips)} | ({"grid": grid} if spec.is_sparse else {})
        yield saving(x, t, **given), model(x, t, **given)


@pytest.mark.parametrize("name, text", CASES)
@pytest.mark.parametrize("clips", [2, 1])
def test_a_model_that_is_used_for_a_second_batch_begins_anew(name, text, clips):
    spec = replace(MODELS[name], learn_sigma=False)
    again, alone = (saved(network(spec), [made(text, spec)], sampler_times("euler", 5)) for _ in range(2))

    def sampled(called: Model, clips: int) -> Tensor:
        x = latents(spec)[:clips]
        return SAMPLERS["euler"](with_guidance(called, 2.0, 5, interval=(0.3, 0.7)), x, 5, labels=LABELS[:clips])

    sampled(again, 2)
    assert torch.equal(sampled(again, clips), sampled(alone, clips))


@pytest.mark.parametrize("name, text", CASES)
def test_another_batch_size_or_stage_is_no_error_and_the_first_call_of_a_batch_computes_all(name, text):
    """Merging and the half without a class change what one call computes, whichever call it is."""
    first, other = (2, 2, 2), (2, 3, 3)
    calls = [(2, 8, first)] * 3 + [(1, 8, first)] * 2 + [(2, 16, first)] + [(2, 8, other)] * 2 + [(2, 8, first)]
    outputs = list(called(MODELS[name], text, *calls, count=20))
    assert all(output.shape == own.shape and output.isfinite().all() for output, own in outputs)
    if not text.startswith("merging"):
        new = [index for index, call in enumerate(calls) if index == 0 or call[:2] != calls[index - 1][:2]]
        assert len(new) == 4
        for index in new:
            assert torch.equal(*outputs[index]), index


@pytest.mark.parametrize("name, text", CASES)
def test_each_saved_model_remembers_its_own_calls(name, text):
    calls = [(2, 8, (2, 2, 2))] * 4
    expected = [output for output, _ in called(MODELS[name], text, *calls)]
    turns = zip(called(MODELS[name], text, *calls), called(MODELS[name], text, *calls), strict=True)
    for output, ((one, _), (other, _)) in zip(expected, turns, strict=True):
        assert torch.equal(one, output) and torch.equal(other, output)


@pytest.mark.parametrize("one, other", list(itertools.combinations_with_replacement(SAVINGS, 2)))
def test_two_go_together_or_are_refused_by_name(one, other):
    texts = [options(SPARSE, name)[0] for name in (one, other)]
    try:
        check_together([made(text, SPARSE) for text in texts])
    except SavingError as error:
        assert one in str(error) and other in str(error)
        assert ("given twice" in str(error)) == (one == other)
        assert SAVINGS[one].family == SAVINGS[other].family or {one, other} == {"faster", "guidance"}
        return
    assert SAVINGS[one].family != SAVINGS[other].family
    assert sample(SPARSE, texts).isfinite().all()
    assert torch.equal(sample(SPARSE, texts), sample(SPARSE, texts[::-1]))


@pytest.mark.parametrize("text", [*NOTHING, *TEXTS])
def test_a_saving_is_read_from_what_it_says_of_itself(text):
    policy = parse_saving(text)
    assert parse_saving(str(policy)) == policy and str(parse_saving(str(policy))) == str(policy)
    assert policy.fresh("null") == policy


@pytest.mark.parametrize("name", SAVINGS)
def test_what_is_misspelt_gets_the_nearest(name):
    with pytest.raises(SavingError, match=f"no saving .* did you mean '{name}'.* accepted are .*{name}"):
        parse_saving(f"{name[:-1]}:every=2")
    for option in (each.name for each in options_of(SAVINGS[name])):
        with pytest.raises(SavingError, match=f"saving {name}: no option .* did you mean '{option}'.* accepted are .*{option}"):
            parse_saving(f"{name}:{option}z=1")


def test_none_at_all_is_said_to_be_an_empty_list():
    for texts in (["none"], ["static", "none"]):
        with pytest.raises(SavingError, match="no saving 'none': none at all is an empty list.*`--saving none` alone"):
            parse_savings(texts)


@pytest.mark.parametrize("savings", ["static:every=2", ["static:every=2"], [parse_saving("static"), "merging"]])
def test_the_text_of_a_saving_is_not_one(savings):
    with pytest.raises(TypeError, match="savings are as `parse_saving` gives them, got '(static:every=2|merging)'"):
        saved(network(LATTE), savings)


@pytest.mark.parametrize("name", SAVINGS)
def test_a_value_without_its_option_gets_the_options(name):
    for text in ("2", "every-2"):
        with pytest.raises(SavingError, match=f"saving {name}: '{text}' is no option with its value; accepted are .*=…"):
            parse_saving(f"{name}:{text}")


def test_the_list_has_each_saving_as_it_is_typed_and_what_it_does():
    found = dict(re.findall(r"^  (\w\S+)(?: \[,[a-z]+=…\])*\n {6}(\w+)", list_savings(), re.MULTILINE))
    assert [text.partition(":")[0] for text in found] == list(SAVINGS)
    for text, does in found.items():
        assert str(parse_saving(text)) == text and does in ("Computes", "Leaves", "Merges")
        assert not re.search(r"\.\d{4}", text), "a default that nobody would type"
    assert max(map(len, list_savings().splitlines())) <= LIST_WIDTH


@pytest.mark.parametrize("name, option", [(name, each) for name in SAVINGS for each in options_of(SAVINGS[name])])
def test_a_value_that_an_option_does_not_take_is_named_with_what_it_takes(name, option):
    if "str" in str(option.type):
        pytest.skip("takes any text")
    for value in ("", "?", "1,5", "0x0x0", "nan", "--1", "1e", "yes", "1e999", "9" * 5000):
        with pytest.raises(SavingError, match=f"saving {name}: "):
            parse_saving(f"{name}:{option.name}={value}")
    with pytest.raises(
        SavingError, match=f"saving {name}: {option.name} = '\\?'; it is (a whole number|a number|on or off|TxHxW)"
    ):
        parse_saving(f"{name}:{option.name}=?")


@pytest.mark.parametrize("family", [name for name in FAMILIES if "DiT" in name])
def test_compiled_layers_give_what_layers_give(family):
    """All that asks outside of layers, and one that asks inside, where a graph ends."""
    torch.compiler.reset()
    spec, compiled = FAMILIES[family], cache(lambda model: with_compiled_layers(model, "eager"))
    for text in all_options(spec):
        inside, guided = {"attention", "mlp"} & {*made(text, spec).points}, text == "guidance:sparse=off"
        if text == "static:every=2" or guided or (not inside and not text.startswith("guidance")):
            found = sample(spec, [text], scheduled=False, guided=guided, change=compiled)
            torch.testing.assert_close(found, sample(spec, [text], scheduled=False, guided=guided), msg=text)
    torch.compiler.reset()


def kept_tensors(value: object, seen: set[int]) -> Iterator[Tensor]:
    """All tensors that something of this package holds, however deep."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from kept_tensors(each, seen)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from kept_tensors(each, seen)
    elif type(value).__module__.startswith("sparsevid.savings"):
        yield from kept_tensors(vars(value), seen)


@pytest.mark.parametrize(
    "texts",
    [[text] for text in TEXTS] + [["static:every=2", "guidance:every=2"], ["taylor:every=3", "guidance:every=2"]],
    ids="+".join,
)
def test_what_is_kept_is_all_that_stays_in_memory(texts):
    """No view of one half's rows that holds on to the other's, which may have gone."""
    spec = replace(SPARSE, learn_sigma=False)
    saving = saved(network(spec), [made(text, spec) for text in texts], sampler_times("euler", 9))
    guided = with_guidance(saving, 2.0, 5)
    for u in sampler_times("euler", 9)[:6]:
        guided(latents(spec), torch.full((2,), 999 * u), labels=LABELS)
        kept = list(kept_tensors(saving.call, set()))
        memory = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept}
        assert sum(memory.values()) <= sum(each.numel() * each.element_size() for each in kept)


@pytest.mark.parametrize("text", [options(SPARSE, name)[0] for name, policy in SAVINGS.items() if policy.needs_times])
def test_what_must_know_the_last_call_says_so(text):
    with pytest.raises(SavingError, match="saving .* must know which call is the last: pass `times`"):
        saved(network(SPARSE), made(text, SPARSE))


@pytest.mark.parametrize("name, text", CASES)
def test_what_is_kept_has_no_gradients_and_goes_with_the_batch_and_with_the_saved_model(name, text):
    spec = replace(MODELS[name], learn_sigma=False)
    saving = saved(network(spec), [made(text, spec)], sampler_times("euler", STEPS))
    for clips in (2, 1):
        with torch.inference_mode(False):
            x, labels = latents(spec, clips).clone(), LABELS[:clips].clone()
            assert not saving(x, torch.full((clips,), 999.0), labels=labels).requires_grad
        kept = list(kept_tensors(saving.call, set()))
        assert not any(each.requires_grad for each in kept)
        if clips == 2:
            before = [weakref.ref(each) for each in kept]
    assert all(ref() is None for ref in before)
    after = [weakref.ref(each) for each in kept]
    del saving, kept
    assert all(ref() is None for ref in after)
