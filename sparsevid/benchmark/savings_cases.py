"""What the benchmark of savings compares: models, samplers, numbers of steps, and savings at each of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from sparsevid.diffusion.samplers import DIFFUSION_SAMPLERS, FLOW_SAMPLERS, sampler_times
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.sampling import Sampling
from sparsevid.savings import parse_saving
from sparsevid.savings.base import Policy, SavingError
from sparsevid.savings.options import check_together

STEPS = (10, 20, 50)
_OF_A_RUN = re.compile(r"/checkpoints/step-[0-9]+$")
_JOINED = re.compile(r"\+(?=[a-z])")  # not that of 1e+3


@dataclass(frozen=True)
class SavingsCase:
    """A row: a way to sample a model.

    Attributes:
        model: its name among the models that are compared.
        sampler: a key of `SAMPLERS` that fits it.
        steps: of the sampler.
        savings: one or several joined by `+`, as they were given; empty: without a saving.
    """

    model: str
    sampler: str
    steps: int
    savings: str = ""

    @property
    def way(self) -> str:
        """Such as `ddim 20 static:every=2`."""
        return f"{self.sampler} {self.steps} {self.savings}".rstrip()

    @property
    def name(self) -> str:
        """The same with its model."""
        return f"{self.model} {self.way}"

    @property
    def calls(self) -> int:
        """Calls that the sampler makes of the model."""
        return len(sampler_times(self.sampler, self.steps))

    @property
    def plain(self) -> "SavingsCase":
        """The same without a saving."""
        return replace(self, savings="")


@dataclass(frozen=True)
class SavingsPlan:
    """The rows, that without a saving before those with, and what was left out of them."""

    cases: tuple[SavingsCase, ...]
    notes: tuple[str, ...]


def plan_savings(
    models: Mapping[str, VideoPipeline],
    savings: Sequence[str] = (),
    samplers: Sequence[str] | None = None,
    steps: Sequence[int] = STEPS,
    **options: Any,
) -> SavingsPlan:
    """Every combination that fits, and each without a saving.

    Args:
        models: by name.
        savings: each of one row, one or several joined by `+`. What does not fit a model is left out for it, with a note.
        samplers: keys of `SAMPLERS`; for each model those that fit it. Default: of each its own.
        steps: of each sampler.
        options: further ones of `VideoPipeline.sampling`, the same for all.

    Raises:
        ValueError: no such saving or option, savings that do not go together, or one that fits none of the models; what a model
            cannot be sampled with, or a sampler that fits none.
    """
    texts = distinct_savings(savings)
    for sampler in samplers or ():
        if not any(sampler in _fitting(pipeline) for pipeline in models.values()):
            next(iter(models.values())).sampling(sampler=sampler)  # raises, with those that are accepted
    cases: list[SavingsCase] = []
    left_out: dict[tuple[str, str], ValueError] = {}  # by savings and model
    for model, pipeline in models.items():
        asked = [pipeline.default_sampler] if samplers is None else samplers
        chosen = [each for each in asked if each in _fitting(pipeline)] or asked
        for sampler, count in product(dict.fromkeys(chosen), dict.fromkeys(steps)):
            plain = SavingsCase(model, sampler, count)
            guided = settings(pipeline, plain, **options).guidance != 1.0
            cases.append(plain)
            for case in (replace(plain, savings=text) for text in texts):
                try:
                    _check_guided(case, guided)
                    settings(pipeline, case, **options)
                except ValueError as error:  # of its savings, for without them it can be sampled
                    left_out[case.savings, model] = error
                else:
                    cases.append(case)
    for (text, _), refusal in left_out.items():
        if not any(case.savings == text for case in cases):
            raise refusal
    notes = (f"{text} is left out for {model}: {refusal}" for (text, model), refusal in left_out.items())
    return SavingsPlan(tuple(cases), tuple(notes))


def distinct_savings(texts: Sequence[str]) -> list[str]:
    """Of rows that say the same in other words the first.

    Raises:
        SavingError: as `parse_saving`, or savings that do not go together.
    """
    rows: dict[str, list[Policy]] = {}
    for text in texts:
        policies = [parse_saving(each) for each in savings_of(text)]
        check_together(policies)
        if policies not in rows.values():
            rows[text] = policies
    return list(rows)


def savings_of(text: str) -> list[str]:
    """The savings of a row, each by itself."""
    return _JOINED.split(text) if text else []


def settings(pipeline: VideoPipeline, case: SavingsCase, **options: Any) -> Sampling:
    """How a row is sampled; what neither it nor the options say comes from the model's config, but no saving does.

    Raises:
        SavingError: its savings do not fit the model, or lack what they need.
        ValueError: as `VideoPipeline.sampling`.
    """
    return pipeline.sampling(sampler=case.sampler, steps=case.steps, savings=savings_of(case.savings), **options)


def model_names(sources: Sequence[str]) -> list[str]:
    """A name for each model: as many last parts of its path as tell it from the others; of a run's checkpoint the run's.

    Raises:
        ValueError: one is given twice.
    """
    if len(set(sources)) < len(sources):
        raise ValueError(f"each model is given once, got {', '.join(sources)}")
    runs = [Path(_OF_A_RUN.sub("", source.rstrip("/"))).parts for source in sources]
    for depth in range(1, max(map(len, runs)) + 1):
        names = ["/".join(parts[-depth:]) for parts in runs]
        if len(set(names)) == len(names):
            return names
    return list(sources)


def _fitting(pipeline: VideoPipeline) -> Sequence[str]:
    return tuple(FLOW_SAMPLERS if pipeline.config.objective.kind == "flow" else DIFFUSION_SAMPLERS)


def _check_guided(case: SavingsCase, guided: bool) -> None:
    """Raise SavingError for a saving of guidance where there is none: it would mean nothing."""
    if not guided and any(parse_saving(text).family == "guidance" for text in savings_of(case.savings)):
        raise SavingError(f"saving {case.savings}: these samples are without guidance; --guidance gives it")
