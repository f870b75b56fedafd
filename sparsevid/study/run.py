"""Doing the rows of a study that are open: one after the other, within a budget; a row that fails stops no other."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.distributed import ProcessGroup

from sparsevid.data.tree.manifest import cache_folder
from sparsevid.study import StudyError
from sparsevid.study.checks import check_data
from sparsevid.study.estimate import Rates
from sparsevid.study.measure import Circumstances, drop_samples, kept_losses, measure_row
from sparsevid.study.plan import Plan, Study
from sparsevid.study.results import Line, agree, append_result, newest, read_json, read_results
from sparsevid.study.train import Budget, Stopped, drop_resuming, is_trained, take_back, train, weights_of
from sparsevid.system.atomic import write_json
from sparsevid.system.distributed import all_meet, from_main, is_main, patient_group
from sparsevid.system.errors import EXPECTED_ERRORS, told
from sparsevid.system.locks import LockedError, folder_locked
from sparsevid.system.logging import get_logger
from sparsevid.system.store import RankError

ALIKE = 60.0  # seconds within which all ranks fail, if a row fails on all
FAILED = "failed.json"  # in a row's folder: why it failed the last time
TOLD = ("study", "row", "seed", "note", "control")
logger = get_logger(__name__)


@dataclass
class Report:
    """What became of the rows that were asked for.

    Attributes:
        done: names of rows and seeds that were done now.
        there: that had been done.
        left: that are open, because they would not end in time.
        failed: with the reason.
        stopped: what stopped the study; None: nothing did.
    """

    done: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None


class RowFailed(StudyError):
    """A row that another one needs has failed."""


def chosen_plans(study: Study, rows: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> list[Plan]:
    """Rows and seeds that are asked for, all rows of a seed before those of the next.

    Args:
        study: whose they are.
        rows: names; default: all.
        seeds: default: of each row its own. A row that is asked for by name is also done for others.

    Raises:
        StudyError, ConfigError, …: as `Study.plan`.
    """
    chosen = [study.row(name) for name in (rows or study.file.rows)]
    known = sorted({seed for row in chosen for seed in row.seeds})
    if not rows and (unknown := [seed for seed in seeds or () if seed not in known]):
        raise StudyError(
            f"{study.path}: no row has seed {unknown[0]}; there are {', '.join(map(str, known))}. Rows that --rows names are "
            "done for others too"
        )
    every = [[each for each in (seeds if seeds and rows else row.seeds) if not seeds or each in seeds] for row in chosen]
    order = sorted({seed for some in every for seed in some})
    return [study.plan(row.name, seed) for seed in order for row, some in zip(chosen, every, strict=True) if seed in some]


def is_done(plan: Plan, lines: Sequence[Line]) -> bool:
    """Whether a row has its line, of its settings and the data at hand; of one that is not measured, whether it is trained."""
    if not plan.row.measured:
        return is_trained(plan.source)
    line = own_line(plan, lines)
    return line is not None and plan.fits(line)


def own_line(plan: Plan, lines: Sequence[Line]) -> Line | None:
    """The newest line of a row and seed."""
    return newest(each for each in lines if each["study"] == plan.row.study.name).get((plan.row.name, plan.seed))


def changes(plan: Plan, lines: Sequence[Line]) -> str:
    """In what the line of a row that is open differs from what it would be now; empty where there is none."""
    line = own_line(plan, lines) if plan.row.measured else None
    if line is None:
        return ""
    if line["settings"] != plan.settings:
        return "by other settings"
    return "on other data" if agree(line, plan.of_figures | {"data": None}) else "by a card or protocol that said other things"


def superseded(plans: Sequence[Plan], lines: Sequence[Line]) -> int:
    """How many rows have a line of other settings or data, in place of which a new one will count."""
    return sum(plan.row.measured and own_line(plan, lines) is not None and not is_done(plan, lines) for plan in plans)


def taken_line(plan: Plan, lines: Sequence[Line]) -> Line | None:
    """The newest line, of whatever row, whose figures are this row's too.

    Of a row that samples another's run it is of the weights that this run has, if it is there: a row of it that is measured now
    would be compared with figures of another training. Lines that do not say their weights are told by the held-out losses.
    """
    return next((line for line in reversed(lines) if plan.fits(line) and _of_weights_at_hand(plan, line)), None)


def _of_weights_at_hand(plan: Plan, line: Line) -> bool:
    if plan.of is None or not is_trained(plan.source):
        return True
    if (said := line.get("weights")) is not None:
        return said == weights_of(plan.source)
    kept, losses = kept_losses(plan), line.get("losses")
    return None in (kept, losses) or kept == losses


def failure(plan: Plan) -> str | None:
    """Why a row failed the last time, if it did by these settings."""
    found = read_json(plan.own_folder / FAILED)
    return found.get("reason") if found.get("settings") == plan.settings else None


def machine_folder() -> Path:
    """What a study locks on this machine; the folder of caches may be shared by several."""
    return cache_folder().with_name(f"study-on-{socket.gethostname()}")


@contextmanager
def alone_on_machine() -> Iterator[None]:
    """No other study of this user runs on this machine meanwhile. All ranks enter it together.

    Raises:
        LockedError: one does, and is named.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_locked(machine_folder(), "used", beside=True))
        except LockedError as error:
            holder = str(error).partition(" is being used by ")[2].partition(":")[0]
            raise LockedError(
                f"another study runs on this machine, {holder}: two would share its cores, and no time that they take would "
                "mean anything; wait for its end, or stop it"
            ) from error
        yield


def run_study(plans: Sequence[Plan], circumstances: Circumstances, siblings: Sequence[Path], budget: Budget) -> Report:
    """Do the rows that are open. All ranks call it together.

    Args:
        plans: of `chosen_plans`, in the order in which they are done.
        circumstances: of all figures; its file of results is added to.
        siblings: further files of results, out of which lines of the same settings are taken.
        budget: the time that there is.
    """
    with patient_group(ALIKE) as group:
        return _run(plans, circumstances, siblings, budget, group)


def _run(
    plans: Sequence[Plan], circumstances: Circumstances, siblings: Sequence[Path], budget: Budget, group: ProcessGroup | None
) -> Report:
    report = Report()
    _look_at_data(plans, circumstances, report)
    for number, plan in enumerate(plans, start=1):
        if plan.name in report.failed:
            continue
        logger.info("%d of %d: %s", number, len(plans), plan.name)
        if from_main(partial(_is_done, plan, circumstances)):
            report.there.append(plan.name)
            from_main(partial(_tidy, plan, circumstances))
            continue
        if again := from_main(partial(_changes, plan, circumstances)):
            logger.warning("%s: its line does not count any more: it was done %s", plan.name, again)
        try:
            with torch.random.fork_rng(devices=()):
                _do(plan, circumstances, siblings, budget, report)
        except Stopped as stop:
            report.stopped = str(stop)
            break
        except RankError:  # others are gone
            raise
        except Exception as error:
            alike = all_meet(group)
            _note_failure(plan, error, report, alone=not alike)
            if not alike:  # others wait for this rank, in vain: its end ends them
                raise
    return report


def _look_at_data(plans: Sequence[Plan], circumstances: Circumstances, report: Report) -> None:
    """See which data there are; an open row that could not be measured by them fails before anything is trained."""
    for plan in plans:
        try:
            manifest = plan.row.study.data.look(plan.config.data)
            if plan.row.measured:
                check_data(manifest, plan.measure)
        except FileNotFoundError:  # not here; a row that needs them will say so
            continue
        except EXPECTED_ERRORS as error:
            if not from_main(partial(_is_done, plan, circumstances)):
                _note_failure(plan, error, report)


def _is_done(plan: Plan, circumstances: Circumstances) -> bool:
    return is_done(plan, read_results(circumstances.results))


def _changes(plan: Plan, circumstances: Circumstances) -> str:
    return changes(plan, read_results(circumstances.results))


def _tidy(plan: Plan, circumstances: Circumstances) -> None:
    """Of a row that is done, remove what a kill may have left, and write its line again if the file says another note or
    control by now. On rank 0.
    """
    drop_samples(plan)
    if is_trained(plan.source):
        drop_resuming(plan.source)
    if not plan.row.measured:
        return
    line, own = own_line(plan, read_results(circumstances.results)), _told(plan, circumstances)
    if line is not None and any(line.get(key) != value for key, value in own.items()):
        append_result(circumstances.results, line | own)


def _told(plan: Plan, circumstances: Circumstances) -> Line:
    """What a line says that follows from no measurement."""
    return {key: value for key, value in circumstances.line(plan).items() if key in TOLD}


def _do(plan: Plan, circumstances: Circumstances, siblings: Sequence[Path], budget: Budget, report: Report) -> None:
    """One row."""
    rates = Rates(from_main(lambda: [line for path in (circumstances.results, *siblings) for line in read_results(path)]))
    if plan.row.measured and from_main(lambda: _take_line(plan, circumstances, rates.lines)):
        report.done.append(plan.name)
        return
    hardware = circumstances.hardware
    if not from_main(lambda: budget.admits(rates.seconds(plan, hardware))):
        if from_main(lambda: budget.over):
            raise Stopped(f"the budget is over before {plan.name}")
        report.left.append(plan.name)
        return
    _train_all(plan.source, budget, report)
    if plan.row.measured:
        if not from_main(lambda: budget.admits(rates.measuring_seconds(plan, hardware))):
            report.left.append(plan.name)  # it is trained
            return
        line = measure_row(plan, circumstances)
        from_main(lambda: append_result(circumstances.results, line))
        from_main(lambda: drop_samples(plan))
        logger.info("%s: loss %.4f, distance %.1f, accuracy %.1f %%, %.4g GMACs and %.3g s a clip", plan.name, line["loss"],
                    line["distance"], 100 * line["accuracy"], line["macs"] / 1e9, line["seconds"])  # fmt: skip
    from_main(lambda: (plan.own_folder / FAILED).unlink(missing_ok=True))
    report.done.append(plan.name)


def _take_line(plan: Plan, circumstances: Circumstances, lines: Sequence[Line]) -> bool:
    """Write the line of a row whose figures another line has, if one does; the run that they are of is taken back if it was set
    aside. On rank 0.
    """
    found = taken_line(plan, lines)
    if found is None:
        return False
    whose, own = f"{found['study']}/{found['row']}", _told(plan, circumstances)
    if (found["study"], found["row"]) == (own["study"], own["row"]):
        logger.info("%s: has its former settings again, and the figures of then", plan.name)
    else:
        logger.info("%s: of the same settings as %s, whose figures it has", plan.name, whose)
        own["same_as"] = whose
    back = take_back(plan.source)
    if not (back and plan.of is None) and _overwritten(found, lines):
        own["shown"] = None
    append_result(circumstances.results, found | own)
    drop_samples(plan)
    return True


def _overwritten(found: Line, lines: Sequence[Line]) -> bool:
    """Whether the clips that a line names are by now those of another line, which was written later: both have one place."""
    places = [(line["study"], line.get("shown")) for line in lines]
    last = lines[len(places) - 1 - places[::-1].index((found["study"], found.get("shown")))]
    return any(last.get(key) != found.get(key) for key in ("settings", "data"))


def _train_all(plan: Plan, budget: Budget, report: Report) -> None:
    """A row's run and those that it needs, each unless it is trained."""
    if from_main(lambda: is_trained(plan)):
        from_main(lambda: drop_resuming(plan))
        return
    for each in plan.needed:
        if each.name in report.failed:
            raise RowFailed(f"{each.name}, which it needs, failed: {report.failed[each.name]}")
        try:
            _train_all(each, budget, report)
        except (Stopped, RankError, RowFailed):
            raise
        except Exception as error:
            _note_failure(each, error, report)
            raise RowFailed(f"{each.name}, which it needs, failed: {report.failed[each.name]}") from error
    if from_main(lambda: budget.over):
        raise Stopped(f"the budget is over before {plan.name}")
    train(plan, budget)


def _note_failure(plan: Plan, error: Exception, report: Report, *, alone: bool = False) -> None:
    """Say and keep why a row failed: rank 0, or the one that is alone with it."""
    mendable = isinstance(error, EXPECTED_ERRORS)  # which is said without a traceback
    reason = told(error) if mendable else f"{type(error).__name__}: {error}"
    report.failed[plan.name] = reason
    logger.warning("%s failed: %s", plan.name, reason, exc_info=None if mendable else error)
    kept = mendable if alone else is_main()  # not of a rank whose connection the failing one took along
    if kept:
        try:
            write_json(plan.own_folder / FAILED, {"settings": plan.settings, "reason": reason})
        except OSError as unwritten:
            logger.warning("%s: %s", plan.name, unwritten)
