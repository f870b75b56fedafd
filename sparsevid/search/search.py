"""A search from a dense checkpoint to layouts and schedules that were tried: measure, choose, fine-tune. What is done stays
done.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from sparsevid.data.open import KnownTrees
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.search import SearchError
from sparsevid.search.allocation import Allocation, allocate, bound, check_reachable, hopeless, least_share, predicted
from sparsevid.search.measure import DENSE, Choice, Losses, measure_rounds
from sparsevid.search.problem import Problem, SearchSettings, open_problem, paper_layout, paper_schedules
from sparsevid.search.refine import Candidate, Fine, ask_converted, mean_and_error, refine
from sparsevid.search.tables import LossTables
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.study.heldout import heldout_clips
from sparsevid.study.results import read_json, write_json
from sparsevid.study.train import Budget
from sparsevid.system.distributed import from_main
from sparsevid.system.locks import folder_locked
from sparsevid.system.logging import get_logger

PAPER = "paper"  # the paper's layout for a model of this depth, to compare with
IDENTITY = "search.json"  # what a folder is of
ERRORS = 3.0  # standard errors by which a choice has to be worse to be left
FRONTIER = 12  # budgets of the frontier
EXTRA = 2  # candidates that are asked as converted, for each that is fine-tuned
logger = get_logger(__name__)


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        problem: what was asked, of which model.
        tables: what was measured.
        candidates: all that were tried, the best first.
        paper: the paper's layout at the same cost; None: it has none at this depth, or none so cheap.
        bound: a predicted loss that nothing within the budget is below.
        frontier: the best over budgets, as predicted.
        dense_loss: of the dense model, with its standard error.
    """

    problem: Problem
    tables: LossTables
    candidates: tuple[Candidate, ...]
    paper: Candidate | None
    bound: float
    frontier: tuple[Allocation, ...]
    dense_loss: tuple[float, float]


def search(
    checkpoint: str, pipeline: VideoPipeline, settings: SearchSettings, out: Path, minutes: float | None = None
) -> Found:
    """Search, or go on with a search. All ranks call it together.

    Args:
        checkpoint: of the dense model, for the fine-tunes.
        pipeline: of it, with the configuration that the fine-tunes have; see `open_problem`.
        settings: what is asked.
        out: folder of the search.
        minutes: for the fine-tunes; None: no end.

    Raises:
        SearchError: the model is not dense, the budget is not reachable, or the folder is of another search.
        Stopped: the time is over, or a signal came; the same call goes on.
        ConfigError, StudyError, ValueError, OSError, …: as what it calls.
    """
    settings.check()
    problem, time = open_problem(pipeline, settings), Budget(minutes)
    check_reachable(problem.costs, problem.grids, settings.budget)
    with folder_locked(out, "searched"):
        data = KnownTrees().look(pipeline.config.data).fingerprint
        from_main(lambda: _take_folder(out, problem, data))
        clips = heldout_clips(pipeline, problem.measure)

        def lost(losses: Losses) -> set[Choice]:
            return hopeless(problem.tables(losses), problem.costs, settings.budget, ERRORS)

        losses = measure_rounds(pipeline, clips, problem.measure, problem.choices, problem.grids, out / "rounds",
                                rounds=settings.rounds, lost=lost)  # fmt: skip
        tables, dense = problem.tables(losses), losses[DENSE]
        candidates, paper = _candidates(problem, tables), _paper(problem, tables)
        compared = [] if paper is None else [paper]
        every = [*candidates, *compared]
        ask_converted(pipeline, every, clips, problem.measure, dense, problem.weights, out / "converted")
        how = Fine(checkpoint, settings.tried, settings.steps, settings.seed, out / "refine", time)
        refine(pipeline, candidates, compared, problem.measure, dense, problem.weights, how)
        return Found(
            problem,
            tables,
            tuple(sorted(candidates, key=lambda each: (-max(each.losses), each.best))),
            paper,
            bound(tables, problem.costs, settings.budget),
            _frontier(problem, tables),
            mean_and_error(dense, problem.weights),
        )


def _take_folder(out: Path, problem: Problem, data: str) -> None:
    """See that the folder is of this search, on data of this fingerprint, or make it so. On rank 0.

    Raises:
        SearchError: it is of another one.
    """
    asked: dict[str, Any] = {key: value for key, value in asdict(problem.settings).items() if key != "batch"}
    asked |= {"model": problem.pipeline.fingerprint(), "data": data}
    asked |= {"grids": [list(grid) for grid in problem.grids], "times": list(problem.times)}
    kept = read_json(out / IDENTITY)
    if other := [key for key, value in asked.items() if kept and kept.get(key) != value]:
        said = ", ".join(f"{key} = {kept.get(key)}" for key in other)
        raise SearchError(f"{out} is of a search with {said}: give the same again to go on with it, or another --out")
    if not kept:
        write_json(out / IDENTITY, asked)


def _candidates(problem: Problem, tables: LossTables) -> list[Candidate]:
    """The best by the tables, by name from the best on."""
    settings = problem.settings
    count = max(1, EXTRA * settings.tried)
    every = allocate(tables, problem.costs, settings.budget, count=count, monotone=settings.monotone)
    return [_candidate(problem, f"searched-{number}", each) for number, each in enumerate(every, start=1)]


def _candidate(problem: Problem, name: str, found: Allocation) -> Candidate:
    schedule = found.schedule(problem.grids, problem.edges, problem.spec.dense_grid())
    ratio = problem.ratio(found.layout, schedule)
    if ratio > problem.settings.budget * (1 + 1e-9):
        raise SearchError(f"{found.layout}: {ratio} of the dense model's multiply–adds, above the budget")  # a mistake here
    return Candidate(name, found.layout, schedule, ratio, (found.loss, found.error))


def _paper(problem: Problem, tables: LossTables) -> Candidate | None:
    """The paper's layout, on the schedule of its form that is the costliest within the budget."""
    layout = paper_layout(problem.spec)
    if layout is None:
        logger.info("the paper has no layout of %d layers: nothing is compared with", problem.spec.depth)
        return None
    priced = [(problem.ratio(layout, schedule), schedule) for schedule in paper_schedules(problem)]
    within = [each for each in priced if each[0] <= problem.settings.budget * (1 + 1e-9)]
    if not within:
        logger.info("the paper's layout %s costs %.3f of dense at least: nothing is compared with", layout, min(priced)[0])
        return None
    ratio, schedule = max(within, key=lambda each: each[0])  # of equal ones the first, the run's own
    return Candidate(PAPER, layout, schedule, ratio, _predicted(problem, tables, layout, schedule))


def _predicted(problem: Problem, tables: LossTables, layout: str, schedule: TokenSchedule) -> tuple[float, float] | None:
    """Of a schedule whose stages are not the tables' intervals, by the grid in the middle of each; None if it has others."""
    middles = [(low + high) / 2 for low, high in pairwise(problem.edges)]
    grids = [schedule.grid(u) for u in middles]
    if not set(grids) <= set(problem.grids):
        return None
    found = predicted(tables, problem.costs, layout, [problem.grids.index(grid) for grid in grids])
    return found.loss, found.error


def _frontier(problem: Problem, tables: LossTables) -> tuple[Allocation, ...]:
    """The best by the tables for budgets from the least that is reachable to that of the dense model."""
    least = least_share(problem.costs, problem.grids)
    budgets = torch.linspace(least, 1.0, FRONTIER, dtype=torch.float64).tolist()
    monotone = problem.settings.monotone
    return tuple(allocate(tables, problem.costs, min(1.0, each + 1e-9), monotone=monotone)[0] for each in budgets)
