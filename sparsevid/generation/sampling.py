"""What decides generated samples beside the model and their noise: settings, resolved and checked.

Dimensions: B clips, C latent channels, T frames, H×W latent height and width, f and g the autoencoder's factors in space and
time, p patch size.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.diffusion.samplers import DIFFUSION_SAMPLERS, FLOW_SAMPLERS, sampler_times
from sparsevid.generation import OF_PROMPTS, SCHEDULES, GenerationError
from sparsevid.models.presets import IMAGE_RATES, VIDEO_RATES
from sparsevid.runs.config import ObjectiveConfig
from sparsevid.savings.options import parse_saving, parse_savings
from sparsevid.sparsity.scaling import scaled_schedule
from sparsevid.sparsity.schedule import TokenSchedule, constant_schedule, default_frames, paper_schedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.seeding import Purpose, keyed_generator


@dataclass(frozen=True)
class Sampling:
    """Settings of a set of samples; with the model's weights they decide every sample.

    Attributes:
        sampler: a name in `SAMPLERS`.
        steps: of the sampler.
        seed: of the whole set; sample i depends on (seed, i).
        batch: clips denoised together; another batch size changes samples by rounding, and by what they share if a saving
            decides by content.
        labels: classes to go through in turn: sample i has labels[i mod length]; empty for an unconditional model.
        guidance: scale of classifier-free guidance, 1 = none.
        guidance_interval: diffusion times (low, high) within which guidance acts; None: all.
        guidance_channels: number of latent channels that are guided; None: all.
        schedule: tokens of a sparse model over time: `paper`, the schedule of its run; `constant`, its spec's default grid;
            `off`, all tokens, which is what a dense model has.
        savings: what calls of the model leave out, as `savings.options.parse_saving` reads it, with every option.
        eta: noise of `ddim`, 0 = none.
        input_size: (T, H, W) of the latents.
        prompts: of a model of text, to go through in turn, as classes.
        negative: text that guidance compares with; None: what `null_caption` says.
        null_caption: whose features mean "no prompt" in guidance: those of the model's `file`, or of the empty text, `encoded`;
            None: without guidance, or with `negative`.
        null_mask: which of its tokens are heard: its `own`, or as many as of the `prompt` beside it; None: without guidance, or
            where padding is heard.
        padding: what becomes of the tokens behind a prompt's own: `masked`, or `heard` as in the public pipeline of Latte-1;
            None: not of text.
    """

    sampler: str
    steps: int
    seed: int
    batch: int
    labels: tuple[int, ...]
    guidance: float
    guidance_interval: tuple[float, float] | None
    guidance_channels: int | None
    schedule: str
    savings: tuple[str, ...]
    eta: float
    input_size: tuple[int, int, int]
    prompts: tuple[str, ...] = ()
    negative: str | None = None
    null_caption: str | None = None
    null_mask: str | None = None
    padding: str | None = None

    def label(self, index: int) -> int | None:
        """The class of sample `index`; None for an unconditional model."""
        return self.labels[index % len(self.labels)] if self.labels else None

    def prompt(self, index: int) -> str | None:
        """The prompt of sample `index`; None where the model is not of text."""
        return self.prompts[index % len(self.prompts)] if self.prompts else None

    def caption(self, index: int, classes: Sequence[str]) -> str | None:
        """A line that says what sample `index` is of: its prompt, or its class by name; None for an unconditional model."""
        prompt, label = self.prompt(index), self.label(index)
        if prompt is not None:
            return " ".join(prompt.split())
        return None if label is None else classes[label]

    def times(self) -> list[float]:
        """Diffusion times of the calls of the model, first call first."""
        return sampler_times(self.sampler, self.steps)

    def record(self, schedule: TokenSchedule | None, classes: Sequence[str]) -> dict[str, Any]:
        """The settings as plain values, for the record of samples.

        Args:
            schedule: the token schedule that these settings walk; None for a dense model.
            classes: names by label.

        Returns:
            Every setting, with `classes` in place of the labels, and `stages`, (low, high, grid): `schedule` alone is a name.
            Those of prompts are left out where there are none.
        """
        settings = asdict(self)
        if not self.prompts:
            settings = {name: value for name, value in settings.items() if name not in OF_PROMPTS}
        names = [classes[label] for label in settings.pop("labels")]
        return settings | {"stages": None if schedule is None else schedule.stages, "classes": names}


def check_sampling(sampling: Sampling, spec: ModelSpec, objective: ObjectiveConfig) -> Sampling:
    """Compare settings with what the model can do.

    Args:
        objective: that the model was trained with.

    Returns:
        The settings; savings as `saving_texts` gives them; guidance of scale 1 without interval, channels and savings of its
        own, for they mean nothing then.

    Raises:
        ValueError: the first setting that does not fit, with what is accepted.
    """
    if (spec.conditioned_on == "text") != bool(sampling.prompts):
        raise ValueError(
            "the model is of text and needs prompts"
            if not sampling.prompts
            else "prompts were given, but the model is not of text"
        )
    fitting = FLOW_SAMPLERS if objective.kind == "flow" else DIFFUSION_SAMPLERS
    if sampling.sampler not in fitting:
        raise ValueError(
            f"sampler {sampling.sampler!r} does not fit a model trained with objective {objective.kind!r}; "
            f"accepted are {', '.join(fitting)}"
        )
    sampling.times()  # raises for a number of steps that the sampler cannot take
    if sampling.batch < 1:
        raise ValueError(f"batch is at least 1, got {sampling.batch}")
    if sampling.eta and sampling.sampler != "ddim":
        raise ValueError(f"eta = {sampling.eta} is an option of the sampler ddim, not of {sampling.sampler}")
    if not 0.0 <= sampling.eta <= 1.0:
        raise ValueError(f"eta = {sampling.eta}; it lies in [0, 1]")
    _check_tokens(sampling, spec)
    _check_guidance(sampling, spec, objective.label_dropout)
    sampling = replace(sampling, savings=saving_texts(sampling.savings))
    if sampling.guidance == 1.0:
        savings = tuple(text for text in sampling.savings if parse_saving(text).family != "guidance")
        return replace(sampling, guidance_interval=None, guidance_channels=None, savings=savings)
    return sampling


def check_finite(latents: Tensor, indices: Sequence[int]) -> None:
    """Refuse latents (B, ...) that would decode to black clips.

    Args:
        indices: global indices of the batch's samples.

    Raises:
        GenerationError: latents that are not finite; the message names their samples.
    """
    finite = latents.isfinite().flatten(1).all(dim=1).tolist()
    if broken := [str(index) for index, good in zip(indices, finite, strict=True) if not good]:
        raise GenerationError(
            f"samples {', '.join(broken)} are not finite (NaN or infinite): the model's weights are broken, or the guidance or "
            "the type that it computes in lets them overflow"
        )


def listed_savings(given: Sequence[str] | str) -> tuple[str, ...]:
    """Savings as they were given, one or several.

    Raises:
        SavingError: what is no text; no such saving or option, with the nearest; or savings that do not go together.
    """
    texts = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    parse_savings(texts)
    return texts


def saving_texts(given: Sequence[str] | str) -> tuple[str, ...]:
    """Savings as they are recorded: with every option, in the order of their names, without those that change nothing.

    Raises:
        SavingError: as `listed_savings`.
    """
    return tuple(map(str, parse_savings(listed_savings(given))))


def whole_number(name: str, value: Any) -> int:
    """A setting that is counted, from any type of whole number.

    Raises:
        ValueError: no whole number, such as 2.5 or "3".
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} = {value!r}; it is a whole number") from None


def time_interval(interval: Sequence[float]) -> tuple[float, float]:
    """The interval of guidance as (low, high).

    Raises:
        ValueError: not two numbers with 0 ≤ low ≤ high ≤ 1.
    """
    if len(interval) != 2 or not 0.0 <= interval[0] <= interval[1] <= 1.0:
        raise ValueError(f"guidance_interval = {tuple(interval)}; it is (low, high) with 0 ≤ low ≤ high ≤ 1")
    return float(interval[0]), float(interval[1])


def class_names(names: Sequence[str], count: int) -> list[str]:
    """A name for each of `count` labels: those that are known, by label, and the label's number for the others."""
    return [*names[:count], *(str(label) for label in range(len(names), count))]


def class_labels(
    given: Sequence[str | int] | str | int | None, names: Sequence[str], count: int, seed: int = 0, *, text: bool = False
) -> tuple[int, ...]:
    """Labels of class names or numbers.

    Args:
        given: one or several names, or labels as numbers or digits; None: all classes, so that samples are balanced, in an
            order drawn by the seed, so that fewer samples than classes are not of the first ones. Digits that are a class's
            name mean this class.
        names: by label, as far as they are known.
        count: number of classes of the model, 0 if it has none.
        seed: of the whole set of samples.
        text: whether a model without classes is of text.

    Raises:
        ValueError: an unknown name, with the nearest ones; a number out of range; digits that are the name of one class and
            the label of another; classes of a model without any.
    """
    if not count:
        if given is not None:
            raise ValueError(f"classes were given, but the model is {'of text: give prompts' if text else 'unconditional'}")
        return ()
    if given is None:
        return tuple(torch.randperm(count, generator=keyed_generator(Purpose.SAMPLE_CLASSES, seed)).tolist())
    given = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not given:
        raise ValueError(f"no class is given; the model has {count}")
    return tuple(_label(item, names[:count], count) for item in given)


def sampled_size(
    spec: ModelSpec, autoencoder: Autoencoder, size: Sequence[int] | None = None, frames: int | None = None
) -> tuple[int, int, int]:
    """(T, H, W) of latents for clips of a size.

    Args:
        autoencoder: that decodes them.
        size: (height, width) in pixels; default: as trained.
        frames: default: as trained.

    Raises:
        ValueError: no multiples of f·p or g, with the nearest accepted ones; or frames that the model cannot take.
    """
    count, *sides = spec.input_size
    if size is not None:
        if len(size) != 2:
            raise ValueError(f"size = {list(size)}; it is (height, width) in pixels")
        size = [whole_number("size", side) for side in size]
        cell = autoencoder.factor * spec.patch_size
        for name, side in zip(("height", "width"), size, strict=True):
            if side < cell or side % cell:
                near = sorted({max(cell, side // cell * cell), max(cell, -(-side // cell) * cell)})
                raise ValueError(
                    f"{name} = {side}; accepted are multiples of {cell} pixels (a patch), such as {' or '.join(map(str, near))}"
                )
        sides = [side // autoencoder.factor for side in size]
    if frames is not None:
        frames = whole_number("frames", frames)
        unit, first = autoencoder.time_factor, int(autoencoder.causal)  # the first frame may be apart
        count, rest = divmod(frames - first, unit)
        count += first
        if count < 1 or rest or (count > 1 and not spec.is_video):
            multiples = (
                "at least 1"
                if unit == 1
                else f"multiples of {unit}{' and one more' * first}, the frames of a patch of the autoencoder"
            )
            one = 1 if first else unit
            accepted = multiples if spec.is_video else f"{one}: the model makes images" if one == 1 else str(one)
            raise ValueError(f"frames = {frames}; accepted is {accepted}")
    return count, sides[0], sides[1]


def token_schedule(sampling: Sampling, spec: ModelSpec, schedule: TokenSchedule | None) -> TokenSchedule | None:
    """The sparse grids over diffusion time, at the size of the settings; None for a dense model.

    Args:
        schedule: of the run, at the size that was trained; None: the paper's for a model like this.
    """
    if not spec.is_sparse:
        return None
    trained, dense = spec.dense_grid(), spec.dense_grid(sampling.input_size)
    if sampling.schedule == "off":
        return constant_schedule(dense)
    if sampling.schedule == "constant":
        schedule = constant_schedule(spec.sparse_grid or ())
    elif schedule is None:
        schedule = paper_schedule(trained, default_frames(trained.t), *(VIDEO_RATES if spec.is_video else IMAGE_RATES))
    return scaled_schedule(schedule, trained, dense)


def _check_tokens(sampling: Sampling, spec: ModelSpec) -> None:
    """The token schedule against the layout."""
    if sampling.schedule not in SCHEDULES:
        raise ValueError(f"schedule = {sampling.schedule!r}; accepted are {', '.join(SCHEDULES)}")
    if not spec.is_sparse and sampling.schedule != "off":
        raise ValueError(f"schedule = {sampling.schedule!r}: the layout {spec.layout!r} is dense; accepted is off")


def _check_guidance(sampling: Sampling, spec: ModelSpec, label_dropout: float) -> None:
    """Scale, interval and channels, also where scale 1 leaves the others without effect; and that "no class" was learned."""
    scale, interval, channels = sampling.guidance, sampling.guidance_interval, sampling.guidance_channels
    savings = [text for text in sampling.savings if parse_saving(text).family == "guidance"]
    if not math.isfinite(scale):
        raise ValueError(f"guidance = {scale}; it is a finite number, 1 = none")
    if not spec.conditioned_on and (scale != 1.0 or interval is not None or channels is not None or savings):
        given = f" and the saving {', '.join(savings)}" if savings else ""
        raise ValueError(
            f"guidance needs a model of classes or of text; this one is unconditional: leave out all its options{given}"
        )
    no_class, what = spec.conditioned_on == "class" and not spec.no_class, "prompt" if sampling.prompts else "class"
    if scale != 1.0 and (no_class or not label_dropout):
        reason = (
            "has no label that means 'no class', which guidance compares with (its table of labels has a row a class)"
            if no_class
            else f"was trained with objective.label_dropout=0, and never saw 'no {what}', which guidance compares with"
        )
        raise ValueError(
            f"guidance = {scale}: this model {reason}; accepted is 1, which is no guidance, or a model trained with "
            "objective.label_dropout above 0"
        )
    if interval is not None:
        time_interval(interval)
    if channels is not None and not 1 <= channels <= spec.in_channels:
        raise ValueError(f"guidance_channels = {channels}; latents have 1 to {spec.in_channels} channels")


def _label(item: str | int, names: Sequence[str], count: int) -> int:
    if isinstance(item, str) and item in names:
        label = list(names).index(item)
        if item.isdecimal() and int(item) != label and int(item) < count:
            raise ValueError(
                f"class {item!r} is the name of label {label}, and {item} is the label of another class: pass the one that is "
                f"meant as a number in Python, classes=[{label}] or classes=[{int(item)}]"
            )
        return label
    if isinstance(item, str) and not item.isdecimal():
        near = get_close_matches(item, names, n=3, cutoff=0.5)
        hint = f"; nearest are {', '.join(near)}" if near else ""
        known = f"; the classes are {', '.join(names)}" if names and not near else ""
        unknown = f"; this model's classes have no names: give numbers, 0 … {count - 1}" if not names else ""
        raise ValueError(f"no class {item!r}{hint}{known}{unknown}")
    label = int(item) if isinstance(item, str) else whole_number("a class", item)
    if not 0 <= label < count:
        raise ValueError(f"class {label} is not a label of this model: it has 0 … {count - 1}")
    return label
