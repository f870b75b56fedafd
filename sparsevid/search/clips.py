"""The held-out clips that a model is asked about, and whether they are such as it was trained on."""

from collections.abc import Sequence

from sparsevid.data.open import KnownTrees
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.search import SearchError
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.study.file import MeasureSettings
from sparsevid.study.heldout import heldout_clips
from sparsevid.system.logging import get_logger
from sparsevid.training.validation import FixedClip

LISTED = 5  # classes in a message
logger = get_logger(__name__)


def open_clips(pipeline: VideoPipeline, measure: MeasureSettings) -> list[FixedClip]:
    """This rank's share of the held-out clips. All ranks call it together.

    Raises:
        SearchError: their classes are not the model's, or their latents of another size.
        FileNotFoundError, ValueError: see `heldout_clips`.
    """
    manifest, record, classes = KnownTrees().look(pipeline.config.data), pipeline.config.record, pipeline.classes
    same = len(classes) == len(manifest.classes) if not record.classes else classes == list(manifest.classes)
    if classes and not same:
        raise SearchError(
            f"the model has the classes {_listed(classes)}, and {manifest.root} has {_listed(manifest.classes)}: give the card "
            "and the root of the data that it was trained on"
        )
    if record.fingerprint not in (None, manifest.fingerprint):
        logger.warning("%s holds other data than the model was trained on", manifest.root)
    if (videos := len(manifest.select(measure.split).videos)) < measure.clips:
        logger.warning("%d clips of %d videos: errors over clips take them all for independent", measure.clips, videos)
    clips = heldout_clips(pipeline, measure)
    check_latents(pipeline.model.spec, clips)
    return clips


def check_latents(spec: ModelSpec, clips: Sequence[FixedClip]) -> None:
    """Raise SearchError if a clip's latents are of another size than a model was trained on."""
    for clip in clips:
        if clip.latents.shape[1:] != spec.input_size:
            found = "×".join(map(str, clip.latents.shape[1:]))
            raise SearchError(f"latents of {found}, and the model was trained on {'×'.join(map(str, spec.input_size))}")


def _listed(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:LISTED])}{', …' if len(classes) > LISTED else ''}" if classes else "none"
