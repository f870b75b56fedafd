"""A model that leaves out, call by call, what policies say: for one sampling of one batch.

Dimensions: B clips, C latent channels, T frames, H×W latent height and width.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsevid.diffusion import BOTH_HALVES, CONDITIONAL, NULL
from sparsevid.diffusion.samplers import TimedModel, Told
from sparsevid.diffusion.wrappers import decide
from sparsevid.models.saving import Part, Place, Stack
from sparsevid.savings.base import Call, Policy, SavingError, TextTold
from sparsevid.savings.options import check_together
from sparsevid.savings.tally import Tally, part_macs
from sparsevid.sparsity.cost import chosen_grid
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.schedule import TIME_ERROR
from sparsevid.sparsity.spec import ModelSpec


class SpecModel(Protocol):
    """A model that says what it is, as a DiffusionTransformer."""

    @property
    def spec(self) -> ModelSpec: ...
    def __call__(self, *args: Any, **told: Any) -> Any: ...


SPARSE_KINDS = "MS"  # kinds of layers whose output has the sparse grid


def saved(
    model: SpecModel,
    savings: Policy | Sequence[Policy],
    times: Sequence[float] | None = None,
    *,
    seed: int = 0,
    tally: Tally | None = None,
    on_idle: Callable[[list[Policy]], object] = lambda idle: None,
) -> TimedModel:
    """A model that leaves out what these savings say, for one sampling of one batch: calls come in the order of sampling.

    It goes inside of `with_token_schedule` and `with_guidance`. What a policy remembers it has for each half of guidance apart.
    All begins anew with another batch: clips of another shape, an earlier time than the last, or one more call than `times`.
    Where the sparse grid changes, what belongs to sparse tokens is forgotten. Where the halves decide differently about a part,
    it is computed for the clips of one. No gradient passes.

    Args:
        model: a DiffusionTransformer.
        savings: one, or several that go together, as `parse_saving` gives them.
        times: diffusion times of all calls, as `sampler_times` gives them, for policies that must know the last one. Heun's
            two calls a step count as two.
        seed: of what a policy draws.
        tally: counts what is computed.
        on_idle: told at the last call, where `times` say which that is, the savings that had no effect in any call.

    Raises:
        SavingError: a saving does not fit the model or another one, or lacks what it needs.
        TypeError: the text of one.
    """
    policies = [savings] if isinstance(savings, Policy) else list(savings)
    if texts := [each for each in policies if not isinstance(each, Policy)]:
        raise TypeError(f"savings are as `parse_saving` gives them, got {savings if isinstance(savings, str) else texts[0]!r}")
    check_together(policies)
    for policy in policies:
        policy.check(model.spec)
        if policy.needs_times and times is None and not policy.changes_nothing:
            raise SavingError(
                f"saving {policy.name} must know which call is the last: pass `times`, such as sampler_times(...)"
            )
    policies = [policy for policy in policies if not policy.changes_nothing]
    policies.sort(key=lambda policy: policy.family != "guidance")  # what a half passes over, no other policy has to know of
    return TimedModel(_Sampling(model, policies, None if times is None else len(times), seed, tally, on_idle))


def _of_rows(rows: slice) -> Callable[[Tensor], Tensor]:
    return lambda value: value[rows]


class _Half(NamedTuple):
    """One half's clips in a call, and its policies."""

    name: str
    rows: slice
    policies: list[Policy]


class _Sampling:
    """The calls of one sampling."""

    def __init__(
        self,
        model: SpecModel,
        policies: Sequence[Policy],
        count: int | None,
        seed: int,
        tally: Tally | None,
        on_idle: Callable[[list[Policy]], object],
    ) -> None:
        self.model, self.policies, self.count, self.seed, self.tally = model, policies, count, seed, tally
        self.number, self.on_idle = 0, on_idle
        self._batch: tuple = ()  # shape of its clips
        self._u = 1.0  # of the last call
        self._acted: set[str] = set()  # names of policies that had an effect
        self._states: dict[str, tuple[Grid | None, list[Policy]]] = {}  # grid and policies of each half

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, told: Told, *, grid: Sequence[int] | None = None, **cond: Any) -> Tensor:
        if not self.policies and self.tally is None:
            return self.model(x, t, grid=grid, **cond)
        spec = self.model.spec
        u = decide(lambda time: time, t, told, "apart, where a saving decides for all clips of a call")
        frames, height, width = x.shape[2:]
        dense = spec.dense_grid((frames, height, width))
        sparse = chosen_grid(spec, dense, grid)
        batch = (len(x) // len(told.halves), *x.shape[1:])
        if batch != self._batch or u > self._u + TIME_ERROR or self.number == self.count:
            self.number, self._batch, self._states = 0, batch, {}
        self._u = u
        call = Call(self.number, u, self.count, spec, dense, sparse, self.seed, text_told(cond))
        self.number += 1
        output = self._called(call, x, t, told, cond)
        if call.is_last and (idle := [policy for policy in self.policies if policy.name not in self._acted]):
            self.on_idle(idle)
        return output

    def _called(self, call: Call, x: Tensor, t: Tensor, told: Told, cond: dict) -> Tensor:
        clips, *_ = self._batch
        together: dict[Grid | None, list[_Half]] = {}  # halves by their grid: those of one grid are one call of the model
        for index, half in enumerate(told.halves):
            policies = self._policies(half)
            own = self._with_grid_of(half, call, policies)
            if half == NULL and (passing := [policy.name for policy in policies if not policy.computes_null(own)]):
                self._acted.update(passing)
                if self.tally is not None:
                    self.tally.add_left_out_clips(own, clips)
                continue
            self._begin(half, own)
            together.setdefault(own.sparse, []).append(_Half(half, slice(index * clips, (index + 1) * clips), policies))
        outputs: dict[str, Tensor] = {}
        for grid, halves in together.items():
            rows = slice(halves[0].rows.start, halves[-1].rows.stop)
            parts = pytree.tree_map_only(Tensor, _of_rows(rows), cond)
            made = self._compute(call._replace(sparse=grid), halves, x[rows], t[rows], parts)
            if len(halves) == len(told.halves) and not self._guides():
                return made
            outputs |= dict(zip([half.name for half in halves], made.split(clips), strict=True))
        if told.halves != BOTH_HALVES:
            return outputs[told.halves[0]]
        null = outputs.get(NULL)
        for policy in self._states[NULL][1]:
            null = policy.null_output(call, outputs[CONDITIONAL], null)
        assert null is not None  # computed, or by the policy that had it left out
        return torch.cat([outputs[CONDITIONAL], null])

    def _with_grid_of(self, half: str, call: Call, policies: Sequence[Policy]) -> Call:
        """The call with the half's own sparse grid."""
        grid = call.sparse
        for policy in policies if half == NULL and grid is not None else ():
            usual, grid = grid, grid and policy.null_grid(grid)
            if grid != usual:
                self._acted.add(policy.name)
        return call._replace(sparse=grid)

    def _guides(self) -> bool:
        """Whether a policy has a say in the output of the half without a class."""
        return any(policy.decides_null for policy in self.policies)

    def _policies(self, half: str) -> list[Policy]:
        """The half's policies."""
        if half not in self._states:
            self._states[half] = (None, [policy.fresh(half) for policy in self.policies])
        return self._states[half][1]

    def _begin(self, half: str, call: Call) -> None:
        """Tell a half's policies that a call begins."""
        grid, policies = self._states[half]
        for policy in policies:
            if grid is not None and grid != call.sparse:
                policy.forget(SPARSE_KINDS)
            policy.begin(call)
        self._states[half] = (call.sparse, policies)

    def _compute(self, call: Call, halves: Sequence[_Half], x: Tensor, t: Tensor, cond: dict) -> Tensor:
        if self.tally is not None:
            self.tally.add_call(call, len(x))
        clips = halves[0].rows.stop - halves[0].rows.start
        halves = [half._replace(rows=slice(i * clips, (i + 1) * clips)) for i, half in enumerate(halves)]
        saving = _OneCall(call, halves, self.tally, self._acted) if self.policies else None
        return self.model(x, t, grid=call.sparse, saving=saving, **cond)


class _OneCall:
    """The `models.saving.Saving` of one call of the model."""

    def __init__(self, call: Call, halves: Sequence[_Half], tally: Tally | None, acted: set[str]) -> None:
        self.call, self._present, self.tally, self._acted = call, halves, tally, acted
        policies = halves[0].policies
        self.points: Collection[str] = {point for policy in policies for point in policy.points}
        self.differences = any(policy.differences for policy in policies)
        self._apart = len(halves) > 1 and any(policy.decides_null for policy in policies)

    @torch.compiler.disable
    def __call__(self, place: Place, part: Part) -> Tensor:
        halves = self._present
        parts = [part] if len(halves) == 1 else [part.of(half.rows) for half in halves]
        reused = [self._reused(half, place, own) for half, own in zip(halves, parts, strict=True)]
        missing = [index for index, output in enumerate(reused) if output is None]
        whole = None
        if len(missing) == len(halves):
            whole = self._computed(place, part, halves)
            outputs = list(whole.split(len(whole) // len(halves)))
        else:
            outputs = [
                self._computed(place, parts[index], halves[index : index + 1]) if output is None else output
                for index, output in enumerate(reused)
            ]
        for index in missing:
            for policy in self._asked(halves[index], place):
                # What one half drops earlier than the other would stay in memory under a view.
                policy.keep(place, parts[index], outputs[index].clone() if self._apart else outputs[index])
        if self.tally is not None and len(missing) < len(halves):
            begun = isinstance(part, Stack) and part.is_begun
            self.tally.leave_out(place, self.call, len(outputs[0]) * (len(halves) - len(missing)), begun)
        if whole is not None:
            return whole
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _asked(self, half: _Half, place: Place) -> list[Policy]:
        """The half's policies that have a say at this place."""
        return [policy for policy in half.policies if place.point in policy.points]

    def _reused(self, half: _Half, place: Place, part: Part) -> Tensor | None:
        """The first thing that one of the half's policies has for the part."""
        for policy in self._asked(half, place):
            if (output := policy.reuse(place, part)) is not None:
                self._acted.add(policy.name)
                return output
        return None

    def _computed(self, place: Place, part: Part, halves: Sequence[_Half]) -> Tensor:
        """The part for these halves' clips, in the form that the policies give it, which is the same in both halves."""
        policies = self._asked(halves[0], place)
        for policy in policies:
            usual, part = part, policy.changed(place, part)
            if part is not usual:
                self._acted.add(policy.name)
        before, clips = self._present, halves[0].rows.stop - halves[0].rows.start
        # What is inside of the part is asked about for these clips only.
        self._present = [half._replace(rows=slice(i * clips, (i + 1) * clips)) for i, half in enumerate(halves)]
        output = part()
        self._present = before
        if self.tally is not None:
            macs = now = part_macs(place, self.call)
            for policy in policies:
                now = policy.macs(place, self.call, now)
            self.tally.change(macs, now, len(output))
        return output


def text_told(cond: Mapping[str, Any]) -> TextTold:
    """What a call's prompts cost: how long they are, and whether keys and values are made of them in it."""
    text = cond.get("text")
    if text is None:
        return {}
    unprepared = isinstance(text, Tensor)
    return {"text_tokens": text.shape[-2] if unprepared else text.keys_values[0].shape[-2], "naive_text": unprepared}
