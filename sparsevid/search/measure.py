"""What each choice loses by itself, measured on a dense model: held-out losses of the model with one layer's attention
averaged, or with one run of its layers turned into a module, on a grid, without any training.

All candidates are asked about the same clips, times and noise, batch by batch in turn, in rounds; after each round those that
cannot be part of the best any more are left.

Dimensions: N clips, J intervals of diffusion time, B clips of a forward.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.convert.dense_to_sparse import dense_to_sparse
from sparsevid.models.saving import Part, Place, Saving
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.search import SearchError
from sparsevid.search.attention import MeanAttention
from sparsevid.search.tables import Choice, LossTables, Span, module_kinds, written
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.layout import parse_layout
from sparsevid.study.file import MeasureSettings
from sparsevid.study.heldout import Question, questions
from sparsevid.system.atomic import renamed
from sparsevid.system.distributed import from_main, sum_over_ranks
from sparsevid.system.logging import get_logger, progress
from sparsevid.training.objective import Objective, build_objective
from sparsevid.training.validation import FixedClip

DENSE = "dense"
logger = get_logger(__name__)

Losses = dict[str, Tensor]  # (N, J) by the name of a choice, NaN where it was not asked; `dense`: of the model itself


def name_of(choice: Choice, grids: Sequence[Grid]) -> str:
    """Of a choice, for files and people: `P3`, `M4-8 2×4×4`."""
    if isinstance(choice, int):
        return f"P{choice}"
    (first, length), grid = choice
    return f"M{first}-{first + length - 1} {grids[grid]}"


class Variants:
    """Models of one dense model's weights, converted.

    Args:
        model: dense.
    """

    def __init__(self, model: DiffusionTransformer) -> None:
        self.spec = model.spec
        self._weights = {name: value.clone() for name, value in model.state_dict().items()}  # fused ones are views of one

    def converted(self, layout: str, grid: Grid) -> DiffusionTransformer:
        """A model of this layout, with residual upsampling, that has not been trained since.

        Args:
            layout: of the same depth.
            grid: its default, if it has sparse layers.
        """
        sparse = parse_layout(layout).is_sparse
        spec = replace(self.spec, layout=layout, sparse_grid=grid if sparse else None, residual_upsampling=True)
        weights, _ = dense_to_sparse(self._weights, self.spec, spec)
        with torch.device("meta"):
            model = DiffusionTransformer(spec)
        model.load_state_dict(weights, assign=True)
        return model.eval()

    def module(self, module: Span, grid: Grid) -> DiffusionTransformer:
        """The model with this run of its layers turned into a module."""
        first, length = module
        return self.converted(written("D" * first + module_kinds(length) + "D" * (self.spec.depth - first - length)), grid)


class _Keeping:
    """A saving that leaves nothing out, and keeps the outputs of layers."""

    points: Collection[str] = ("layer",)
    differences = False

    def __init__(self) -> None:
        self.outputs: dict[int, Tensor] = {}

    def __call__(self, place: Place, part: Part) -> Tensor:
        self.outputs[place.index] = part()
        return self.outputs[place.index]


class _Above:
    """A saving that takes the outputs of the layers below one from another model's call, in which these are the same."""

    points: Collection[str] = ("layer",)
    differences = False

    def __init__(self, index: int, outputs: Mapping[int, Tensor]) -> None:
        self.index, self.outputs = index, outputs

    def __call__(self, place: Place, part: Part) -> Tensor:
        return self.outputs[place.index] if place.index < self.index else part()


def measure_rounds(
    pipeline: VideoPipeline,
    clips: Sequence[FixedClip],
    measure: MeasureSettings,
    choices: Sequence[Choice],
    grids: Sequence[Grid],
    folder: Path,
    *,
    rounds: int,
    lost: Callable[[Losses, int], set[Choice]] = lambda losses, asked: set(),
) -> Losses:
    """Held-out losses of the dense model and of all choices, round by round. All ranks call it together.

    Args:
        pipeline: of the dense model.
        clips: this rank's share of the fixed clips.
        measure: clips, times, their seed, and the batch.
        choices: that are asked.
        grids: of the choices.
        folder: where the rounds are kept; those that are there are not measured again.
        rounds: into which clips are divided.
        lost: of the losses so far, and of how many clips they are, the choices that need not be asked any more.

    Returns:
        On all ranks.

    Raises:
        SearchError: a loss is not finite.
    """
    names = [name_of(each, grids) for each in choices]
    losses = {name: torch.full((measure.clips, measure.times), torch.nan, dtype=torch.float64) for name in (DENSE, *names)}
    alive, variants = list(choices), Variants(pipeline.model)
    models = {
        module: variants.module(module, grids[0]) for module in {each[0]: None for each in choices if isinstance(each, tuple)}
    }
    for number in range(rounds):
        chosen = range(number * measure.clips // rounds, (number + 1) * measure.clips // rounds)
        path = folder / f"round-{number}.safetensors"
        found = from_main(partial(read_losses, path))
        if found is None or {name for name in found if name != DENSE} != {name_of(each, grids) for each in alive}:
            own = [clip for clip in clips if clip.number in chosen]
            found = _measure(pipeline, own, measure, alive, grids, models, f"round {number + 1} of {rounds}")
            from_main(partial(write_losses, path, found))
        for name, values in found.items():
            losses[name][chosen.start : chosen.stop] = values[chosen.start : chosen.stop]
        if number + 1 < rounds:
            gone = from_main(partial(lost, losses, chosen.stop))
            alive = [each for each in alive if each not in gone]
            logger.info("round %d of %d: %d of %d choices can still win", number + 1, rounds, len(alive), len(choices))
    return losses


def loss_tables(
    losses: Losses, depth: int, grids: Sequence[Grid], modules: Sequence[Span], weights: Sequence[float]
) -> LossTables:
    """Means over clips of the differences to the dense model, with their standard errors, by interval of time."""
    times = len(weights)

    def table(choices: Sequence[Choice], part: int) -> np.ndarray:
        return np.stack([_mean_and_error(losses, name_of(each, grids))[part] for each in choices])

    def tables(part: int, errors: LossTables | None = None) -> LossTables:
        by_module = {each: table([(each, g) for g in range(len(grids))], part) for each in modules}
        return LossTables(tuple(grids), table(range(depth), part), by_module, np.asarray(weights, dtype=float), errors)

    assert all(each.shape[1] == times for each in losses.values())
    return tables(0, tables(1))


@torch.no_grad()
def _measure(
    pipeline: VideoPipeline,
    clips: Sequence[FixedClip],
    measure: MeasureSettings,
    choices: Sequence[Choice],
    grids: Sequence[Grid],
    models: Mapping[Span, DiffusionTransformer],
    what: str,
) -> Losses:
    """Losses of some of the clips, and zeros for the others, added up over the ranks."""
    objective, names = build_objective(pipeline.config.objective), [name_of(each, grids) for each in choices]
    found = {name: torch.zeros(measure.clips, measure.times, dtype=torch.float64) for name in (DENSE, *names)}
    with progress(total=len(clips) * measure.times * len(choices), desc=what, unit="forward") as bar:
        for asked in questions(pipeline, clips, measure, None):
            keeping = _Keeping()
            found[DENSE][asked.numbers, asked.intervals] = _losses(asked, objective, pipeline.model, keeping)
            for choice, name in zip(choices, names, strict=True):
                if isinstance(choice, int):
                    own = _losses(asked, objective, pipeline.model, MeanAttention(choice, keeping.outputs))
                else:
                    (first, _), grid = choice[0], grids[choice[1]]
                    own = _losses(asked, objective, models[choice[0]], _Above(first, keeping.outputs), grid=grid)
                found[name][asked.numbers, asked.intervals] = own
                bar.update(len(asked.numbers))
    found = {name: sum_over_ranks(values) for name, values in found.items()}
    if broken := [name for name, values in found.items() if not values.isfinite().all()]:
        raise SearchError(f"the loss of {broken[0]} is not finite, and of {len(broken) - 1} others: the weights may be damaged")
    return found


def _losses(asked: Question, objective: Objective, model: DiffusionTransformer, saving: Saving, **more: Any) -> Tensor:
    """(B,) of a model."""
    condition = asked.condition | more | {"saving": saving}
    return asked._replace(condition=condition).losses(objective, model).double().cpu()


def write_losses(path: Path, losses: Losses) -> None:
    """Write losses whole or not at all; their folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed(path) as draft:
        save_file(losses, draft)


def read_losses(path: Path) -> Losses | None:
    """What `write_losses` wrote; None where there is no such file, or one that is damaged, which a warning names."""
    if not path.is_file():
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s): measured again", path, error)
        return None


def error_of_sum(losses: Losses, chosen: Sequence[Sequence[str]], weights: Sequence[float]) -> float:
    """The standard error of a sum of losses over clips, which all are of the same clips.

    Args:
        losses: of choices, by name.
        chosen: names in each interval of time.
        weights: (J,) of the intervals.
    """
    by_clip = sum(weights[j] * (losses[name] - losses[DENSE])[:, j] for j, names in enumerate(chosen) for name in names)
    if isinstance(by_clip, int):  # nothing is chosen
        return 0.0
    asked = by_clip[~by_clip.isnan()]  # of which all choices were asked
    return float(asked.std() / len(asked) ** 0.5)


def _mean_and_error(losses: Losses, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(J,) mean difference to the dense model over the clips that were asked, and its standard error."""
    difference = (losses[name] - losses[DENSE]).numpy()
    asked = difference[~np.isnan(difference).any(1)]
    return asked.mean(0), asked.std(0, ddof=1) / len(asked) ** 0.5
