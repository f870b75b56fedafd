"""What a sampler calls of a model: its layers one by one, compiled, or replayed as CUDA graphs; or what savings leave of it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparsevid.diffusion.samplers import Model
from sparsevid.diffusion.wrappers import guidance_acts, in_float32, with_guidance, with_token_schedule
from sparsevid.generation.sampling import Sampling
from sparsevid.models.compiled import with_compiled_layers
from sparsevid.models.graphs import GraphedModel
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings.base import Policy
from sparsevid.savings.fits import fits_folder
from sparsevid.savings.options import SAVINGS, parse_saving, parse_savings
from sparsevid.savings.tally import Tally
from sparsevid.savings.wrapper import saved
from sparsevid.sparsity.grid import Grid, check_sparse_grid
from sparsevid.sparsity.schedule import TokenSchedule, stage_at
from sparsevid.system.distributed import is_main
from sparsevid.system.logging import get_logger

INSIDE_OF_LAYERS = {"attention", "mlp"}  # points at which a compiled layer cannot be asked
logger = get_logger(__name__)


class Condition(NamedTuple):
    """What a batch is told beside latents and times.

    Attributes:
        given: to each call: `labels`, or `text`; nothing to an unconditional model.
        null: what stands for nothing in guidance, as `with_guidance` takes it: `null_label`, or `null_text`.
    """

    given: dict[str, Any]
    null: dict[str, Any]


class Networks:
    """The forms of one model.

    Args:
        model: in evaluation mode.
        compile: its layers may be compiled.
    """

    def __init__(self, model: DiffusionTransformer, compile: bool) -> None:
        self.model = model
        self.layers = with_compiled_layers(model) if compile else model
        self.graphs = GraphedModel(model, self.layers)
        self._told: set[str] = set()
        self._policies: dict[tuple[str, ...], list[Policy]] = {}  # by the texts of savings

    def policies(self, savings: tuple[str, ...], weights_file: Path | None) -> list[Policy]:
        """Savings with what was fitted to the model, which lies by its weights.

        A fit is read once, as the weights are: all batches of a job go by the one that its record names.

        Raises:
            SavingError: one that does not fit the model, or lacks what is fitted to it.
        """
        if savings not in self._policies:
            folder = None if weights_file is None else fits_folder(weights_file)
            found = [saving.with_fits(folder) for saving in parse_savings(savings)]
            for saving in found:
                saving.check(self.model.spec)
            self._policies[savings] = found
        return self._policies[savings]

    def denoiser(
        self,
        sampling: Sampling,
        schedule: TokenSchedule | None,
        savings: Sequence[Policy] = (),
        null: Mapping[str, Any] | None = None,
        *,
        graphed: bool = False,
        tally: Tally | None = None,
    ) -> Model:
        """The model as samplers call it, for one sampling of one batch: guidance, in it the schedule's grids, in these savings.

        Args:
            sampling: settings of the sampler and of guidance.
            schedule: of the sparse grids, at the size of the settings; None for a dense model.
            savings: with what was fitted to the model.
            null: what guidance compares with (`Condition.null`).
            graphed: a call that leaves nothing out is replayed as a CUDA graph.
            tally: counts what is computed.

        Raises:
            SavingError: savings that do not fit the model or each other, or lack what they need.
            ValueError: a grid that cannot be.
        """
        model = self._saved(savings, sampling, graphed, tally)
        dtype = next(self.model.parameters()).dtype
        if dtype != torch.float32:
            model = in_float32(model, dtype)
        if schedule is not None:
            _check_null_grids(savings, schedule, self.model.spec.dense_grid(sampling.input_size))
            model = with_token_schedule(model, schedule)
        if sampling.guidance == 1.0:
            return model
        channels, interval = sampling.guidance_channels, sampling.guidance_interval
        return with_guidance(model, sampling.guidance, channels=channels, interval=interval, **(null or {}))

    def _saved(self, savings: Sequence[Policy], sampling: Sampling, graphed: bool, tally: Tally | None) -> Model:
        """The model in a form that savings can act on: no CUDA graph, which computes all, and no layer that cannot be asked."""
        acting = [saving for saving in savings if not saving.changes_nothing]
        inside = [saving for saving in acting if INSIDE_OF_LAYERS.intersection(saving.points)]
        # Also where nothing acts, for it checks the savings.
        layers = self.model if inside else self.layers
        model = saved(layers, savings, sampling.times(), seed=sampling.seed, tally=tally, on_idle=self._tell_idle)
        if not acting and tally is None:
            return self.graphs if graphed else self.layers
        if graphed:
            self._tell("kernels are launched one by one, and no CUDA graph is replayed", acting)
        if inside and self.layers is not self.model:
            self._tell("what acts inside of layers takes those that are not compiled", inside)
        return model

    def check(
        self, given: Sequence[str], sampling: Sampling, schedule: TokenSchedule | None, weights_file: Path | None
    ) -> None:
        """Look whether these settings can be, and log, once, which of the savings that were given have no effect in them.

        Raises:
            SavingError, ValueError: as `policies` and `denoiser`.
        """
        self.denoiser(replace(sampling, guidance=1.0), schedule, self.policies(sampling.savings, weights_file))
        for saving in [saving for saving in map(parse_saving, given) if str(saving) not in sampling.savings]:
            reason = "with these options" if saving.changes_nothing else "without guidance"
            self._tell_once(f"saving {saving}: it leaves nothing out {reason}", logging.WARNING)

    def _tell_idle(self, savings: Sequence[Policy]) -> None:
        """Log which savings had no effect on a whole sampling, once."""
        for saving in [saving for saving in savings if saving.name in SAVINGS]:
            self._tell_once(f"saving {saving}: it left nothing out of a batch, in none of its calls", logging.WARNING)

    def _tell(self, what: str, savings: Sequence[Policy]) -> None:
        """Log a way that is taken instead of another, once."""
        self._tell_once(f"{', '.join(f'saving {saving.name}' for saving in savings) or 'counting'}: {what}", logging.INFO)

    def _tell_once(self, message: str, level: int) -> None:
        if message not in self._told and is_main():
            self._told.add(message)
            logger.log(level, message)


def first_calls(sampling: Sampling, schedule: TokenSchedule | None, graphed: bool) -> list[tuple[Sampling, list[float]]]:
    """Settings and times of calls in which each kind of call is there that these settings make.

    With a saving, the second call of a stage may leave out what the first computes; and where the halves of guidance decide
    differently, layers see the clips of one half.
    """

    def kind(u: float) -> tuple[int, bool]:
        return (stage_at(schedule, u) if schedule else 0), guidance_acts(sampling.guidance_interval, u)

    groups = [(sampling, list(times)[:2]) for _, times in groupby(sampling.times(), key=kind)]
    if not sampling.savings:
        return groups * (2 if graphed else 1)  # a CUDA graph is recorded at its second call
    return groups + [(replace(sampling, guidance=1.0), times) for _, times in groups if sampling.guidance != 1.0]


def _check_null_grids(savings: Sequence[Policy], schedule: TokenSchedule, dense: Grid) -> None:
    """Raise ValueError for a grid that a saving gives to the half without a class, and that cannot stand for `dense`."""
    for stage in schedule.stages:
        for saving in savings:
            check_sparse_grid(saving.null_grid(Grid(*stage.grid)), dense)
