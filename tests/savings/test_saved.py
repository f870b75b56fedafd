"""One sampling with savings: the halves of guidance, each by itself, and what is asked inside of what is computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from every import FAMILIES, LABELS, latents, network
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparsevid.diffusion import BOTH_HALVES, NULL
from sparsevid.diffusion.samplers import Model
from sparsevid.diffusion.wrappers import with_guidance
from sparsevid.models.saving import STACK, Part, Place
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import parse_saving, saved
from sparsevid.savings.base import Call, Policy, SavingError
from sparsevid.savings.tally import Tally
from sparsevid.sparsity.spec import ModelSpec

DENSE, SPARSE = (replace(FAMILIES[name], learn_sigma=False) for name in ("dense Latte", "sparse Latte"))
SPECS = {"dense": DENSE, "sparse": SPARSE}
NULL_LABELS = torch.full_like(LABELS, 5)
TIMES = (999.0, 800.0, 700.0, 500.0)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@dataclass
class Planted(Policy):
    """Reuses, at the points given, whatever it kept, where `decides` says so of half, call and place."""

    name: ClassVar[str] = "planted"

    points: tuple = ("stack",)
    decides: Callable[[str, int, Place], bool] = lambda half, number, place: False
    asks_first: bool = False  # whether it looks at a stack's first layer
    _call: Call | None = field(init=False, default=None)

    def begin(self, call: Call) -> None:
        self._call = call

    def reuse(self, place: Place, part: Part) -> Tensor | None:
        if self.asks_first and place == STACK:
            part.first()
        return self.kept.get(place) if self.decides(self.half, self._call.number, place) else None

    def keep(self, place: Place, part: Part, output: Tensor) -> None:
        assert len(part.inputs()[0]) == len(output) == len(LABELS)
        self.kept[place] = output


class Inner(Planted):
    """Another one that goes with it."""

    name: ClassVar[str] = "inner"
    family: ClassVar[str] = "inner"


def at(seed: int) -> Tensor:
    """Latents of a call."""
    return torch.randn(latents(DENSE).shape, generator=torch.Generator().manual_seed(seed))


def called_at(model: Model, number: int, labels: Tensor = LABELS) -> Tensor:
    return model(at(number), torch.full((2,), TIMES[number]), labels=labels)


def calls(called: Model, labels: Tensor) -> list[Tensor]:
    return [called_at(called, number, labels) for number in range(len(TIMES))]


def alone(model: DiffusionTransformer, policies: list[Policy], half: str, monkeypatch) -> list[Tensor]:
    """The calls with one half only, whose policies are told which it is."""
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "fresh", lambda self, _, fresh=Policy.fresh: fresh(self, half))
        return calls(saved(model, policies, TIMES), NULL_LABELS if half == NULL else LABELS)


def check_halves(spec: ModelSpec, policies: list[Policy], monkeypatch) -> None:
    """Both together give what each gives by itself, to rounding, and what is counted is what PyTorch counts."""
    model, tally = network(spec), Tally()
    with FlopCounterMode(display=False) as counter:
        together = calls(with_guidance(saved(model, policies, TIMES, tally=tally), 2.0, 5), LABELS)
    conditional, null = (alone(model, policies, half, monkeypatch) for half in BOTH_HALVES)
    for found, with_class, without in zip(together, conditional, null, strict=True):
        torch.testing.assert_close(found, torch.lerp(without, with_class, 2.0), rtol=1e-4, atol=1e-5)
    assert tally.macs == counter.get_total_flops() / 2


DECISIONS = {
    "null": lambda half, number, place: half == NULL and number > 0,
    "conditional": lambda half, number, place: half != NULL and number > 0,
    "in turns": lambda half, number, place: number > 0 and (number % 2 == 0) == (half == NULL),
    "by layer": lambda half, number, place: number > 0 and (place.index % 2 == 0) == (half == NULL),
    "both": lambda half, number, place: number % 2 == 1,
}
WHERE = [("stack",), ("layer",), ("attention",), ("mlp",), ("attention", "mlp")]


@pytest.mark.parametrize("points", WHERE, ids="-".join)
@pytest.mark.parametrize("decides", DECISIONS.values(), ids=DECISIONS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_halves_that_decide_differently_give_what_each_gives_alone(spec, decides, points, monkeypatch):
    check_halves(spec, [Planted(points, decides)], monkeypatch)


@pytest.mark.parametrize("decides", DECISIONS.values(), ids=DECISIONS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_halves_that_look_at_the_first_layer_before_they_decide(spec, decides, monkeypatch):
    check_halves(spec, [Planted(("stack",), decides, asks_first=True)], monkeypatch)


@pytest.mark.parametrize("outer", [("stack", False), ("stack", True), ("layer", False)], ids=str)
@pytest.mark.parametrize("decides", [DECISIONS["null"], DECISIONS["in turns"]], ids=["null", "in turns"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_inside_of_what_one_half_computes_that_half_is_asked_alone(spec, decides, outer, monkeypatch):
    """The stack or layers are left out for one half while attentions of the other are reused."""
    point, asks_first = outer
    inner = Inner(("attention",), lambda half, number, place: number > 0 and (number % 3 == 0) == (half == NULL))
    check_halves(spec, [Planted((point,), decides, asks_first), inner], monkeypatch)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_half_counts_the_calls_that_compute_it(spec):
    """With the null half at every second call, a cache of every second call computes all of it at every fourth."""
    model, both = network(spec), [parse_saving("static:every=2"), parse_saving("guidance:every=2")]
    guided = with_guidance(saved(model, both), 2.0, 5)
    conditional, null = (saved(model, both[0]) for _ in BOTH_HALVES)
    for number in range(4):
        with_class = called_at(conditional, number)
        if number % 2 == 0:
            difference = with_class - called_at(null, number, NULL_LABELS)
        expected = torch.lerp(with_class - difference, with_class, 2.0)
        torch.testing.assert_close(called_at(guided, number), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_half_goes_on_where_guidance_begins_and_ends(spec):
    """The half with a class keeps what it has; the other is computed at the first call at which guidance acts."""
    model, static = network(spec), parse_saving("static:every=3")
    guided = with_guidance(saved(model, static), 2.0, 5, interval=(0.65, 0.85))
    conditional, null = (saved(model, static) for _ in BOTH_HALVES)
    for number in range(4):
        expected = called_at(conditional, number)
        if number in (1, 2):  # t = 800, 700
            expected = torch.lerp(called_at(null, number, NULL_LABELS), expected, 2.0)
        torch.testing.assert_close(called_at(guided, number), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "text, rows",
    [
        ("static:every=2", [4, 4]),
        ("guidance:every=2", [4, 2]),
        ("guidance:grid=1x1x1", [2, 2, 2, 2]),
        ("guidance:grid=2x2x2", [4, 4]),
    ],
)
def test_halves_of_one_grid_are_one_call_of_the_model(text, rows):
    model, seen = network(SPARSE), []
    with hooked(model, lambda _, given: seen.append(len(given[0]))):
        guided = with_guidance(saved(model, parse_saving(text)), 2.0, 5)
        for number in range(2):
            called_at(guided, number)
    assert seen == rows


@contextmanager
def hooked(model: DiffusionTransformer, hook: Callable) -> Iterator[None]:
    """Inside, what the model is called with is seen."""
    handle = model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_clips_at_different_times_are_refused():
    called = saved(network(DENSE), parse_saving("static:every=2"))
    with pytest.raises(ValueError, match="diffusion times from 0.3003 to 1.0000 lie apart, where a saving decides for all"):
        called(at(0), torch.tensor([999.0, 300.0]), labels=LABELS)


def test_a_model_that_does_not_have_what_is_left_out_is_refused():
    for text in ("steps:every=2", "guidance:sparse=off", "guidance:grid=1x2x2"):
        with pytest.raises(SavingError, match="the layout '4D' has no sparse layers"):
            saved(network(DENSE), parse_saving(text))


@pytest.mark.parametrize("text", ["static:every=2", "first_block:threshold=9", "guidance:every=2"])
def test_weights_of_another_type_keep_it(text):
    model = network(SPARSE, torch.bfloat16)
    called = with_guidance(saved(model, parse_saving(text)), 2.0, 5)
    for number in range(3):
        x, t = at(number).bfloat16(), torch.full((2,), TIMES[number])
        assert called(x, t, labels=LABELS).dtype == torch.bfloat16
