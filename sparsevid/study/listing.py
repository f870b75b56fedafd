"""What a study's rows are, how far they are, and how long they will take."""

from collections.abc import Sequence

from sparsevid.study.estimate import Rates, untrained
from sparsevid.study.plan import Plan
from sparsevid.study.results import Line
from sparsevid.study.run import failure, is_done, own_line
from sparsevid.study.train import is_trained, steps_done

LISTED = ("row", "seed", "state", "training PMACs", "sampled GMACs/clip", "left, about")


def listing(plans: Sequence[Plan], lines: Sequence[Line], hardware: str) -> list[list[str]]:
    """A row of `LISTED` for each plan.

    Args:
        plans: of `chosen_plans`.
        lines: of all results that are known.
        hardware: of this machine, as lines have it.
    """
    rates, found = Rates(lines), []
    for plan in plans:
        done = is_done(plan, lines)
        left = 0.0 if done else rates.seconds(plan, hardware)
        # In units in which small studies are seen too.
        macs = f"{plan.source.training_macs / 1e15:.3g}"
        found.append([plan.row.name, str(plan.seed), state(plan, lines), macs, f"{plan.sampled_macs / 1e9:.4g}", _time(left)])
    return found


def state(plan: Plan, lines: Sequence[Line]) -> str:
    """`done`, `part (step n of N)`, `trained`, `failed (reason)`, `changed` (done by other settings) or `open`."""
    if is_done(plan, lines):
        return "done"
    reason, source = failure(plan), plan.source
    if reason is not None:
        return f"failed ({reason})"
    if is_trained(source):
        return "trained"
    if steps := steps_done(source):
        return f"part (step {steps} of {source.config.train.steps})"
    if own_line(plan, lines) is not None:
        return "changed (done by other settings)"
    lacking = [each.row.name for each in untrained(plan) if each is not source]
    return f"open (needs {', '.join(lacking)})" if lacking else "open"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
