"""How long rows will take, by what earlier ones took on the same hardware."""

import statistics
from collections.abc import Sequence

from sparsevid.study.plan import Plan
from sparsevid.study.results import Line
from sparsevid.study.train import is_trained, steps_done


class Rates:
    """Multiply-adds a second of lines that are there: in training, and in what is measured.

    Args:
        lines: of results.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = list(lines)

    def training_seconds(self, plan: Plan, hardware: str, *, done: int = 0) -> float | None:
        """Of a row's own run, beyond the steps that are done; None where nothing is known."""
        known = [line for line in self._of(hardware) if line.get("training_seconds") and line.get("training_macs")]
        if not known:
            return None
        rate = sum(line["training_macs"] for line in known) / sum(line["training_seconds"] for line in known)
        return plan.step_macs * max(0, plan.config.train.steps - done) / rate

    def measuring_seconds(self, plan: Plan, hardware: str) -> float | None:
        """Of what is measured of a row; None where nothing is known.

        By sampled multiply-adds, which take most of it; the rest is told apart where rows differ in them by half or more.
        """
        known = [line for line in self._of(hardware) if line.get("measuring_seconds") and line.get("clips")]
        if not known:
            return None
        work, seconds = [line["macs"] * line["clips"] for line in known], [line["measuring_seconds"] for line in known]
        own = plan.sampled_macs * plan.sample.clips
        if max(work) > 1.5 * min(work):
            slope, rest = statistics.linear_regression(work, seconds)
            if slope > 0 and rest > 0:
                return slope * own + rest
        return own * sum(seconds) / sum(work)

    def seconds(self, plan: Plan, hardware: str) -> float | None:
        """Of all that is left of a row, with what it needs; None where nothing is known."""
        return self.together([plan], hardware)

    def together(self, plans: Sequence[Plan], hardware: str) -> float | None:
        """Of all that is left of several rows, each run once; None where nothing is known of one."""
        parts = [self.measuring_seconds(plan, hardware) for plan in plans if plan.row.measured]
        for each in dict.fromkeys(each for plan in plans for each in untrained(plan)):
            parts.append(self.training_seconds(each, hardware, done=steps_done(each)))
        known = [seconds for seconds in parts if seconds is not None]
        return sum(known) if len(known) == len(parts) else None

    def _of(self, hardware: str) -> list[Line]:
        return [line for line in self.lines if line.get("hardware") == hardware and "same_as" not in line]


def untrained(plan: Plan) -> list[Plan]:
    """The runs that a row lacks, its own last."""
    source = plan.source
    if is_trained(source):
        return []
    found = [each for needed in source.needed for each in untrained(needed)]
    return [*dict.fromkeys(found), source]
