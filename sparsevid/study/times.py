"""Seconds of rows that are done, anew and in turns: each turn times every row once, so that the ratio of two rows holds
however the machine's speed moves meanwhile.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone

from sparsevid.benchmark.savings import warm_call
from sparsevid.benchmark.timing import time_turn
from sparsevid.study.heldout import SampleCaptions, sample_captions
from sparsevid.study.measure import Circumstances, fitted, open_pipeline, sampling_of, seconds_of
from sparsevid.study.plan import Plan
from sparsevid.study.results import Line, append_result, read_results
from sparsevid.study.run import is_done, own_line
from sparsevid.study.train import is_trained, weights_of
from sparsevid.system.distributed import from_main
from sparsevid.system.logging import get_logger, progress

logger = get_logger(__name__)


def time_rows(plans: Sequence[Plan], circumstances: Circumstances) -> list[str]:
    """Time the rows that are done, and write their lines anew with that. All ranks call it together, and rank 0 does it.

    Args:
        plans: of `chosen_plans`. Rows that are open or not measured are passed over; with a warning those that were measured on
            other hardware, and those whose run is not there, or another one is.
        circumstances: of the times.

    Returns:
        Names of the rows and seeds that were timed.

    Raises:
        StudyError, GenerationError, OSError, …: as `open_pipeline`, and as sampling.
    """
    timed = [plan for plan in plans if plan.row.measured]
    captions = {plan.name: sample_captions(plan.config, plan.measure, plan.sample.clips) for plan in timed}
    return from_main(lambda: _time(timed, captions, circumstances))


def _time(plans: Sequence[Plan], captions: Mapping[str, SampleCaptions | None], circumstances: Circumstances) -> list[str]:
    before = read_results(circumstances.results)
    lines: dict[str, Line] = {}
    calls: dict[str, Callable[[], object]] = {}
    batches: dict[str, int] = {}
    for plan in plans:
        line = own_line(plan, before)
        if line is None or not is_done(plan, before):
            continue
        if (measured_on := line.get("hardware")) != circumstances.hardware:
            logger.warning("%s is not timed on %s: it was measured on %s", plan.name, circumstances.hardware, measured_on)
            continue
        if not is_trained(plan.source):
            logger.warning("%s is not timed: %s does not hold its run, by its settings and data", plan.name, plan.folder)
            continue
        if (weights := line.get("weights")) is not None and weights != weights_of(plan.source):
            logger.warning("%s is not timed: %s holds other weights than its line is of", plan.name, plan.folder)
            continue
        pipeline = open_pipeline(plan)
        told = captions[plan.name]
        sampling = sampling_of(plan, pipeline, fitted(plan, pipeline, told), told)
        lines[plan.name], calls[plan.name], batches[plan.name] = line, warm_call(pipeline, sampling), sampling.batch
    if not calls:
        return []
    turns = 1 + max(plan.measure.repeats for plan in plans)
    _warm, *seconds = [time_turn(calls) for _ in progress(range(turns), desc="time all rows", unit="turn")]
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    timed = {"date": date, "commit": circumstances.header["commit"], "rows": len(calls)}
    for name, line in lines.items():
        own = seconds_of([turn[name] for turn in seconds], batches[name])
        append_result(circumstances.results, line | own | {"timed": timed})
    return list(calls)
