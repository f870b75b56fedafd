"""A search from a dense checkpoint to layouts and schedules that were tried: measure, choose, fine-tune. What is done stays
done.
"""

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t

from sparsevid.data.open import KnownTrees
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.search import SearchError
from sparsevid.search.allocation import Allocation, allocate, bound, check_reachable, hopeless, least_share, predicted
from sparsevid.search.clips import open_clips
from sparsevid.search.measure import DENSE, Losses, measure_rounds
from sparsevid.search.problem import Problem, SearchSettings, open_problem, paper_layout, paper_schedules
from sparsevid.search.refine import Candidate, Fine, ask_converted, confirm, mean_and_error, refine
from sparsevid.search.tables import Choice, LossTables, modules_of
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.schedule import TokenSchedule
from sparsevid.study.results import read_json
from sparsevid.study.train import Budget
from sparsevid.system.atomic import write_json
from sparsevid.system.distributed import from_main
from sparsevid.system.locks import folder_locked
from sparsevid.system.logging import get_logger

PAPER = "paper"  # the paper's layout for a model of this depth, to compare with
IDENTITY, ROUNDS = "search.json", "rounds"  # what a folder is of, and what was measured
FORMAT = 1  # of what a folder keeps
SURE = 0.9987  # how sure it has to be, entry by entry, that a choice cannot win: three standard errors of many clips
OTHER_SEED = 1000  # between clips that choose and clips that confirm
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
        paper: the paper's layout, on the costliest schedule of its form within the budget; None: it has none at this depth, or
            none so cheap.
        confirmed: the best's loss minus the paper's, on clips, times and noise that had no part in the choice, with standard
            error; None: there are not both, or nothing was trained.
        bound: a predicted loss that nothing within the budget is below.
        frontier: the best over budgets, as predicted.
        dense_loss: of the dense model, with its standard error.
    """

    problem: Problem
    tables: LossTables
    candidates: tuple[Candidate, ...]
    paper: Candidate | None
    confirmed: tuple[float, float] | None
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
        clips = open_clips(pipeline, problem.measure)
        spared = _choices_of_paper(problem)

        def lost(losses: Losses, asked: int) -> set[Choice]:
            errors = float(t.ppf(SURE, asked - 1))
            return hopeless(problem.tables(losses), problem.costs, settings.budget, errors) - spared

        losses = measure_rounds(pipeline, clips, problem.measure, problem.choices, problem.grids, out / ROUNDS,
                                rounds=settings.rounds, lost=lost)  # fmt: skip
        tables, dense = problem.tables(losses), losses[DENSE]
        candidates, paper = _candidates(problem, tables, losses), _paper(problem, tables, losses)
        compared = [] if paper is None else [paper]
        every = [*candidates, *compared]
        ask_converted(pipeline, every, clips, problem.measure, dense, problem.weights, out / "converted")
        how = Fine(checkpoint, settings.tried, settings.steps, settings.seed, out / "refine", time)
        refine(pipeline, candidates, compared, problem.measure, dense, problem.weights, how)
        ranked = sorted(candidates, key=lambda each: (-max(each.losses), each.best))
        confirmed = None
        if paper is not None and paper.plan is not None:
            fresh = replace(problem.measure, seed=problem.measure.seed + OTHER_SEED)
            confirmed = confirm(ranked[0], paper, fresh, problem.weights)
        return Found(
            problem,
            tables,
            tuple(ranked),
            paper,
            confirmed,
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
    asked |= {"format": FORMAT, "grids": [list(grid) for grid in problem.grids], "times": list(problem.times)}
    kept = read_json(out / IDENTITY)
    if not kept and (out / ROUNDS).exists():
        raise SearchError(f"{out} has {ROUNDS}/ and no {IDENTITY} that says of which search: give another --out, or remove it")
    if other := [key for key, value in asked.items() if kept and kept.get(key) != value]:
        said = ", ".join(f"{key} = {kept.get(key)}" for key in other)
        raise SearchError(f"{out} is of a search with {said}: give the same again to go on with it, or another --out")
    if not kept:
        write_json(out / IDENTITY, asked)


def _choices_of_paper(problem: Problem) -> set[Choice]:
    """What is asked of all clips, so that the paper's layout is predicted as well as what is found."""
    layout = paper_layout(problem.spec)
    if layout is None:
        return set()
    pooled = len(layout_kinds := parse_layout(layout).kinds) - len(layout_kinds.lstrip("P"))
    return {*range(pooled), *((module, g) for module in modules_of(layout) for g in range(len(problem.grids)))}


def _candidates(problem: Problem, tables: LossTables, losses: Losses) -> list[Candidate]:
    """The best by the tables, by name from the best on."""
    settings = problem.settings
    count = max(1, EXTRA * settings.tried)
    every = allocate(tables, problem.costs, settings.budget, count=count, monotone=settings.monotone)
    return [_candidate(problem, f"searched-{number}", each, losses) for number, each in enumerate(every, start=1)]


def _candidate(problem: Problem, name: str, found: Allocation, losses: Losses) -> Candidate:
    schedule = found.schedule(problem.grids, problem.edges, problem.spec.dense_grid())
    ratio = problem.ratio(found.layout, schedule)
    if ratio > problem.settings.budget * (1 + 1e-9):
        raise SearchError(f"{found.layout}: {ratio} of the dense model's multiply–adds, above the budget")  # a mistake here
    return Candidate(name, found.layout, schedule, ratio, (found.loss, problem.error_of(found, losses)))


def _paper(problem: Problem, tables: LossTables, losses: Losses) -> Candidate | None:
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
    return Candidate(PAPER, layout, schedule, ratio, _predicted(problem, tables, losses, layout, schedule))


def _predicted(
    problem: Problem, tables: LossTables, losses: Losses, layout: str, schedule: TokenSchedule
) -> tuple[float, float] | None:
    """Of a schedule whose stages are not the tables' intervals, by the grid in the middle of each; None if it has others."""
    middles = [(low + high) / 2 for low, high in pairwise(problem.edges)]
    grids = [schedule.grid(u) for u in middles]
    if not set(grids) <= set(problem.grids):
        return None
    found = predicted(tables, problem.costs, layout, [problem.grids.index(grid) for grid in grids])
    return found.loss, problem.error_of(found, losses)


def _frontier(problem: Problem, tables: LossTables) -> tuple[Allocation, ...]:
    """The best by the tables for budgets from the least that is reachable to that of the dense model."""
    least = least_share(problem.costs, problem.grids)
    budgets = torch.linspace(least, 1.0, FRONTIER, dtype=torch.float64).tolist()
    monotone = problem.settings.monotone
    return tuple(allocate(tables, problem.costs, min(1.0, each + 1e-9), monotone=monotone)[0] for each in budgets)
