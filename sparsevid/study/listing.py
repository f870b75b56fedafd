"""What a study's rows are, how far they are, and how long they will take."""

from collections.abc import Sequence
from typing import NamedTuple

from sparsevid.study.estimate import Rates, untrained
from sparsevid.study.plan import Plan
from sparsevid.study.results import Line
from sparsevid.study.run import changes, failure, is_done, taken_line
from sparsevid.study.train import is_trained, steps_done

LISTED = ("row", "seed", "state", "training PMACs", "sampled GMACs/clip", "left, about")


class Listed(NamedTuple):
    """How far a row is.

    Attributes:
        row, seed: which.
        state: as `state` says it.
        training_macs: of its own training.
        sampled_macs: of a clip.
        seconds_left: about; None where it is not known.
    """

    row: str
    seed: int
    state: str
    training_macs: float
    sampled_macs: float
    seconds_left: float | None

    def cells(self) -> list[str]:
        """The row of a table of the columns `LISTED`, in units in which small studies are seen too."""
        macs = [f"{self.training_macs / 1e15:.3g}", f"{self.sampled_macs / 1e9:.4g}"]
        return [self.row, str(self.seed), self.state, *macs, _time(self.seconds_left)]


def listing(plans: Sequence[Plan], lines: Sequence[Line], hardware: str) -> list[Listed]:
    """How far each plan is.

    Args:
        plans: of `chosen_plans`.
        lines: of all results that are known.
        hardware: of this machine, as lines have it.
    """
    rates, found = Rates(lines), []
    for plan in plans:
        left = rates.together(_to_do([plan], lines), hardware)
        macs = plan.source.training_macs, plan.sampled_macs
        found.append(Listed(plan.row.name, plan.seed, state(plan, lines), *macs, left))
    return found


def left(plans: Sequence[Plan], lines: Sequence[Line], hardware: str) -> str:
    """How long all that is open of these rows will take, each run once, in a sentence; empty where nothing is open."""
    open_ones, rates = _to_do(plans, lines), Rates(lines)
    if not open_ones:
        return ""
    known = [plan for plan in open_ones if rates.seconds(plan, hardware) is not None]
    count = f"{len(open_ones)} of {len(plans)} rows and seeds are open"
    if not known:
        return f"{count}; how long they take is not known"
    unknown = f", without {len(open_ones) - len(known)} of which it is not known" if len(known) < len(open_ones) else ""
    return f"{count}; together about {_time(rates.together(known, hardware))}{unknown}"


def _to_do(plans: Sequence[Plan], lines: Sequence[Line]) -> list[Plan]:
    """Those that something has to be computed for."""
    return [plan for plan in plans if not is_done(plan, lines) and not (plan.row.measured and taken_line(plan, lines))]


def state(plan: Plan, lines: Sequence[Line]) -> str:
    """`done`, `part (step n of N)`, `trained`, `failed (reason)`, `changed` (done by other settings or data) or `open`."""
    if is_done(plan, lines):
        return "done"
    reason, source = failure(plan), plan.source
    if reason is not None:
        return f"failed ({reason})"
    if is_trained(source):
        return "trained"
    if steps := steps_done(source):
        return f"part (step {steps} of {source.config.train.steps})"
    if how := changes(plan, lines):
        return f"changed (done {how})"
    lacking = [each.row.name for each in untrained(plan) if each is not source]
    return f"open (needs {', '.join(lacking)})" if lacking else "open"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
