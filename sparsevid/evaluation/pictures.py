"""Pictures of a score: its fit against the number of clips, and the fake clips nearest to and farthest from the real set."""

from pathlib import Path

from sparsevid.evaluation.evaluate import Measurement
from sparsevid.evaluation.metrics.uncertainty import Extrapolation
from sparsevid.evaluation.plot import nearest_and_farthest, plot_extrapolation
from sparsevid.videos.sheets import write_contact_sheet

SHOWN = 8  # clips of a contact sheet


def write_pictures(measured: Measurement, folder: Path) -> list[Path]:
    """Draw what a measurement holds.

    Args:
        measured: with features of real clips; without an extrapolation in its record, the plot of the fit is left out.
        folder: made if it is missing.

    Returns:
        The files written: `score_against_clips.png`, `nearest.png`, `farthest.png`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no features of real clips.
        DecodeError: a clip cannot be read any more.
    """
    if measured.real is None or not measured.real.clip_ids:
        raise ValueError("pictures show generated clips beside real ones, which this score does not look at")
    folder.mkdir(parents=True, exist_ok=True)
    record, written = measured.record, []
    if record.extrapolation is not None:
        path = folder / "score_against_clips.png"
        name = "no protocol" if record.protocol is None else record.protocol["name"]
        plot_extrapolation(path, Extrapolation(**record.extrapolation), title=name, metric=record.metric)
        written.append(path)
    lists = nearest_and_farthest(measured.real.features, measured.fake.features, SHOWN)
    for name, positions in zip(("nearest", "farthest"), lists, strict=True):
        shown = [next(iter(measured.clips.read(position, position + 1))) for position in positions]
        path = folder / f"{name}.png"
        write_contact_sheet(path, [clip for _, clip in shown], captions=[clip_id for clip_id, _ in shown])
        written.append(path)
    return written
