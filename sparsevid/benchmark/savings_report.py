"""What the benchmark of savings prints, writes and shows: table, JSON, and a picture with a contact sheet for each row."""

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from sparsevid.benchmark.report import MISSING
from sparsevid.benchmark.savings import SavingsMeasurement, SavingsResult
from sparsevid.benchmark.savings_cases import SavingsCase
from sparsevid.evaluation.comparison import LEVEL
from sparsevid.sparsity.cost import frontier
from sparsevid.training.scoring import Scoring
from sparsevid.videos.sheets import contact_sheet, write_board

SAVINGS_COLUMNS = (
    "model",
    "sampler",
    "steps",
    "calls",
    "savings",
    "GMACs/clip",
    "GMACs / most",
    "layers",
    "s/clip",
    "spread",
    "most / this",
    "peak MB",
    "distance",
    "interval",
    "PSNR",
    "SSIM",
    "frontier",
)
SHOWN_FRAMES = 4  # of each clip in the picture
COSTS = {"seconds": "seconds", "multiply-adds": "macs"}  # what a frontier is along, and the attribute of a result


def frontiers(measured: SavingsMeasurement) -> dict[SavingsCase, list[str]]:
    """Along which of `COSTS` each row lies on the frontier; rows without a time are on none along seconds."""
    found: dict[SavingsCase, list[str]] = {case: [] for case in measured.results}
    for name, cost in COSTS.items():
        rows = [result for result in measured.results.values() if getattr(result, cost) is not None]
        marks = frontier([(getattr(result, cost), result.score) for result in rows])
        for result, lies in zip(rows, marks, strict=True):
            found[result.case] += [name] * lies
    return found


def savings_rows(measured: SavingsMeasurement) -> list[list[str]]:
    """A row of `SAVINGS_COLUMNS` for each result."""
    lies, most = frontiers(measured), _most(measured)
    return [] if most is None else [_row(result, most, lies[result.case]) for result in measured.results.values()]


def savings_lines(measured: SavingsMeasurement, scoring: Scoring, clips: int) -> list[str]:
    """What a reader of the table has to know, a line each, what was left out, and what failed."""
    return [
        f"distance: {scoring.detector.metric} by {scoring.protocol.name}, {clips} samples against "
        f"{len(scoring.real.clip_ids)} real clips, from memory; the protocol intends {scoring.protocol.fake_count} of each; "
        f"interval: of {LEVEL:.0%}, for other clips",
        "GMACs/clip: counted multiply-adds of the whole sampling, guidance included, without what was left out; layers: the "
        "share of their attentions and MLPs that was computed; most: the row of the most multiply-adds",
        "s/clip: median of the turns from noise to latents, spread: slowest less fastest over it; most / this: of the seconds, "
        "median over the turns; peak: memory of a batch beyond what is held before it, without CUDA graphs",
        "PSNR (dB), SSIM: to the clips of the same model, noise and steps without a saving, mean over frames; ∞: the same",
        "frontier: no other row costs at most as much and is at most as far, and less in one of the two",
        *measured.plan.notes,
        *(f"nothing was left out: {case.name}" for case in _idle(measured)),
        *(f"failed: {case.name}: {reason}" for case, reason in measured.failed.items()),
    ]


def savings_as_json(header: dict, measured: SavingsMeasurement) -> dict:
    """Everything measured, as plain values; an infinite PSNR is the text `inf`, which JSON has no number for.

    Args:
        header: as `describe_run` gives it.
        measured: so far.
    """
    lies = frontiers(measured)
    return {
        "header": header,
        "notes": list(measured.plan.notes),
        "results": [_result_as_json(result, lies[result.case]) for result in measured.results.values()],
        "failed": [_case_as_json(case) | {"reason": reason} for case, reason in measured.failed.items()],
    }


def write_clips(path: str | Path, measured: SavingsMeasurement, scale: int = 1) -> None:
    """One picture with a contact sheet for each row: a line for each model, sampler and saving, steps from left to right.

    Args:
        path: a PNG file; its folder exists.
        measured: its clips.
        scale: each pixel becomes this many in width and in height.
    """
    cases = measured.plan.cases
    steps = sorted({case.steps for case in cases})
    lines = dict.fromkeys(replace(case, steps=0) for case in cases)
    single = len({case.model for case in cases}) == 1
    blocks, captions = [], []
    for case in (replace(line, steps=count) for line in lines for count in steps):
        result, name = measured.results.get(case), case.way if single else case.name
        blocks.append(Image.new("RGB", (1, 1), "white") if result is None else _sheet(result, scale))
        # The name last: of a caption that is too long the end is cut.
        captions.append(f"no clips: {name}" if result is None else f"FD {result.score:.1f}: {name}")
    write_board(path, blocks, captions, columns=len(steps))


def _idle(measured: SavingsMeasurement) -> list[SavingsCase]:
    """Rows whose savings left nothing out: they compute what the row without does."""
    plain = {case: measured.results[case.plain].macs for case in measured.results if case.plain in measured.results}
    return [case for case, macs in plain.items() if case.savings and measured.results[case].macs == macs]


def _sheet(result: SavingsResult, scale: int) -> Image.Image:
    return contact_sheet(result.shown, max_frames=SHOWN_FRAMES, scale=scale)


def _most(measured: SavingsMeasurement) -> SavingsResult | None:
    """The row of the most multiply-adds."""
    return max(measured.results.values(), key=lambda result: result.macs, default=None)


def _row(result: SavingsResult, most: SavingsResult, lies: list[str]) -> list[str]:
    case, interval = result.case, result.record.interval
    times = [one / other for one, other in zip(most.turns, result.turns, strict=True)]
    return [
        case.model,
        case.sampler,
        str(case.steps),
        str(case.calls),
        case.savings or MISSING,
        f"{result.macs / 1e9:.4g}",
        f"{result.macs / most.macs:.3f}",
        f"{result.share:.1%}",
        f"{result.seconds:.4g}" if result.turns else MISSING,
        f"{result.spread:.0%}" if result.turns else MISSING,
        f"{statistics.median(times):.2f}×" if times else MISSING,
        MISSING if result.peak_bytes is None else f"{result.peak_bytes / 1e6:.1f}",
        f"{result.score:.1f}",
        MISSING if interval is None else f"{interval['low']:.1f} … {interval['high']:.1f}",
        MISSING if result.psnr is None else "∞" if math.isinf(result.psnr) else f"{result.psnr:.2f}",
        MISSING if result.ssim is None else f"{result.ssim:.4f}",
        ", ".join(lies),
    ]


def _result_as_json(result: SavingsResult, lies: list[str]) -> dict:
    return _case_as_json(result.case) | {
        "macs_per_clip": result.macs,
        "share_of_layers": result.share,
        "batch": result.batch,
        "seconds_per_clip": result.seconds,
        "seconds_of_turns": list(result.turns),
        "peak_bytes": result.peak_bytes,
        "distance": result.score,
        "psnr": "inf" if result.psnr is not None and math.isinf(result.psnr) else result.psnr,
        "ssim": result.ssim,
        "frontier": lies,
        "record": result.record.as_dict(),
    }


def _case_as_json(case: SavingsCase) -> dict[str, Any]:
    return {
        "model": case.model,
        "sampler": case.sampler,
        "steps": case.steps,
        "calls": case.calls,
        "savings": case.savings or None,
    }
