"""Which clips a step has seen, for what is said of clips that failed and of steps that were skipped."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from sparsevid.data.clips import NO_VIDEO
from sparsevid.data.tree.manifest import Video
from sparsevid.system.distributed import gather_objects
from sparsevid.system.logging import get_logger
from sparsevid.training.objective import Draw
from sparsevid.training.outcome import Outcome

logger = get_logger(__name__)


class SeenClip(NamedTuple):
    """A clip of a batch.

    Attributes:
        video: its index in the dataset.
        start: its first frame.
        failed: the last video that could not be decoded before it was drawn, `NO_VIDEO` if none.
        u: the time at which its loss was computed.
    """

    video: int
    start: int
    failed: int
    u: float


def seen_clips(batch: dict[str, Tensor], draw: Draw) -> list[SeenClip]:
    """The clips of a loader's batch, whose tensors may then go."""
    columns = [batch[name].tolist() for name in ("video", "start", "failed")]
    return list(map(SeenClip, *columns, draw.u.tolist()))


def log_failed(seen: Sequence[SeenClip], videos: Sequence[Video], known: set[int]) -> None:
    """Name videos that could not be decoded, each once. All ranks call it together.

    Args:
        seen: of this rank.
        videos: of the dataset.
        known: those that were named before; it grows.
    """
    failed = {number for each in gather_objects([clip.failed for clip in seen]) for number in each}
    for index in sorted(failed - {NO_VIDEO} - known):
        known.add(index)
        logger.warning("%s cannot be decoded; other clips are drawn in its place", videos[index].path)


def log_skipped(seen: Sequence[SeenClip], videos: Sequence[Video], step: int, outcome: Outcome) -> None:
    """Say that a step is skipped, and of which clips it was. All ranks call it together.

    Args:
        seen: of this rank.
        videos: of the dataset.
        step: counted from 0.
        outcome: of the step.
    """
    mine = [f"{videos[clip.video].path} from {clip.start} at u = {clip.u:.4f}" for clip in seen]
    lines = [f"  rank {number}: {'; '.join(samples)}" for number, samples in enumerate(gather_objects(mine))]
    logger.warning(
        "step %d is skipped on all ranks: loss %g, gradient norm %g\n%s",
        step, outcome.loss, outcome.grad_norm, "\n".join(lines),
    )  # fmt: skip
