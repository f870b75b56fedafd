"""What all rows of a study are measured by: the protocol, features of real clips, and the classifier with its own accuracy.

Dimensions: N clips, T frames, H×W pixels.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsevid.data.clips import ClipDataset, fixed_clips
from sparsevid.data.open import open_data
from sparsevid.data.sources import VideoFrames
from sparsevid.evaluation.classifier import ClipClassifier
from sparsevid.evaluation.comparison import compute_metrics
from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.evaluate import extract_features
from sparsevid.evaluation.protocols import Protocol, load_protocol
from sparsevid.runs.config import RunConfig
from sparsevid.study import StudyError
from sparsevid.study.file import MeasureSettings
from sparsevid.study.heldout import heldout_config
from sparsevid.study.results import digest, read_json
from sparsevid.system.atomic import renamed, write_json
from sparsevid.system.distributed import default_device, from_main
from sparsevid.system.logging import get_logger, progress
from sparsevid.training.scoring import real_videos

FEATURES = "features"  # folder below a study's runs: of real clips for good, of samples until their row is measured
SHOWN_REAL = "real"  # file of clips, with the reference's name
logger = get_logger(__name__)


@dataclass(frozen=True)
class Reference:
    """What rows are measured by.

    Attributes:
        name: tells apart what is not: figures by the same name compare.
        protocol: of the distance: all frames of the clips, as large as they are, against the held-out split.
        classes: names by label.
        classifier: where it lies, for rank 0.
        accuracy: of the classifier on real clips of the held-out split.
        distance: of real training clips to those of the held-out split; as many as a row has samples, if there are so many.
        shown: file with a real held-out clip of each class.
    """

    name: str
    protocol: Protocol
    classes: tuple[str, ...]
    classifier: Path
    accuracy: float
    distance: float
    shown: Path


def open_reference(config: RunConfig, measure: MeasureSettings, clips: int, folder: Path) -> Reference:
    """Make what rows are measured by, or take it if it was made. All ranks call it together.

    Args:
        config: of a checkpoint; it says where the data are.
        measure: splits, clips and seed.
        clips: samples of a row.
        folder: of the study's runs.

    Raises:
        StudyError: data without classes, of which the accuracy of samples would mean nothing.
        ValueError, FileNotFoundError, DecodeError: as `open_data`, `extract_features`.
    """
    protocol, classes = study_protocol(config, measure, clips), tuple(config.record.classes)
    if len(classes) < 2:
        raise StudyError(f"the data of {config.folder} have {len(classes)} classes: a study is of data with classes")
    key: list[Any] = [config.record.fingerprint, config.data.frames, config.data.stride, config.data.size, clips]
    key += [asdict(measure), protocol.as_dict()]
    name = digest(key)[:12]
    kept, classifier = folder / f"reference-{name}.json", folder / f"classifier-{name}.safetensors"
    found = from_main(lambda: read_json(kept))
    if not found:
        distance = _real_distance(config, measure, protocol, clips, folder)
        train, heldout = (split_clips(config, measure, split) for split in (measure.train_split, measure.split))
        accuracy = from_main(partial(_fit, train, heldout, classes, measure, classifier))
        found = {"accuracy": accuracy, "distance": distance}
        from_main(partial(write_json, kept, found))
    shown = folder / f"{SHOWN_REAL}-{name}.npz"
    if not from_main(shown.is_file):
        from_main(partial(_show_real, split_clips(config, measure, measure.split), classes, shown))
    return Reference(name, protocol, classes, classifier, found["accuracy"], found["distance"], shown)


def study_protocol(config: RunConfig, measure: MeasureSettings, clips: int) -> Protocol:
    """The protocol of a study's distances: detector and metric of a known one, on whole clips of this run.

    Args:
        config: of a run, with what its card answers filled in.
        measure: split, and the known protocol.
        clips: samples of a row.
    """
    clip, known = config.data.clip(), load_protocol(measure.protocol or config.monitor.protocol)
    sides: dict[str, Any] = {"real_stride": clip.stride, "fake_stride": 1, "real_start": "random", "fake_start": "first"}
    sides |= {"real_count": None, "fake_count": clips, "clips_per_video": 1, "real_min_frames": None, "fake_min_frames": None}
    height, width = clip.size
    name = f"{known.name}, {clip.frames} frames of {height}×{width}, {measure.split}"
    return replace(
        known, name=name, frames=clip.frames, size=clip.size, split=measure.split, seed=measure.seed, lossless=True,
        real_selection="balanced", fake_selection="sorted", **sides,
    )  # fmt: skip


def save_shown(path: Path, clips: Tensor, classes: list[str]) -> None:
    """Write clips to look at: a compressed NumPy archive of `clips`, uint8 (N, 3, T, H, W), and `classes`, their names (N).

    Args:
        path: the file; its folder exists.
        clips: uint8 (N, 3, T, H, W).
        classes: names, by clip.
    """
    with renamed(path) as draft, draft.open("wb") as file:
        np.savez_compressed(file, clips=clips.numpy(), classes=np.array(classes))


def split_clips(config: RunConfig, measure: MeasureSettings, split: str) -> ClipDataset:
    """The clips of a split, drawn by the seed of what is measured, not mirrored. All ranks call it together."""
    config = heldout_config(config, measure)
    filled, manifest, dataset = open_data(config)
    source = VideoFrames(manifest.root, filled.data.clip().size, config.data.decoder)
    return ClipDataset(manifest.select(split), dataset.rule, source, seed=measure.seed)


def _real_distance(config: RunConfig, measure: MeasureSettings, protocol: Protocol, clips: int, folder: Path) -> float:
    """Of real training clips to held-out ones: what a model that had learned the data would have, but for their number."""
    source, device = real_videos(config.data), default_device()
    detector = build_detector(protocol.detector, device, options=protocol.detector_options)
    (folder / FEATURES).mkdir(parents=True, exist_ok=True)
    sides = {}
    for split in (measure.split, measure.train_split):
        limit = None if split == measure.split else max(2, clips)
        file = folder / FEATURES / f"real-{split}.safetensors"
        sides[split] = extract_features(source, "real", detector, protocol, split=split, limit=limit, out=file)
    return next(iter(compute_metrics(sides[measure.split], sides[measure.train_split], protocol).values()))


def _fit(train: ClipDataset, heldout: ClipDataset, classes: tuple[str, ...], measure: MeasureSettings, path: Path) -> float:
    """Train the classifier, keep it, and say how good it is on the held-out split. On rank 0."""
    model = ClipClassifier.fit(*_clips_and_labels(train), classes, measure.seed, steps=measure.classifier_steps)
    accuracy = model.accuracy(*_clips_and_labels(heldout))
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    logger.info("classifier: %.1f %% of %d real held-out clips", 100 * accuracy, len(heldout))
    return accuracy


def _clips_and_labels(dataset: ClipDataset) -> tuple[Tensor, list[int]]:
    samples = [dataset[index] for index in progress(range(len(dataset)), desc="clips for the classifier")]
    return torch.stack([each["clip"] for each in samples]), [int(each["label"]) for each in samples]


def _show_real(dataset: ClipDataset, classes: tuple[str, ...], path: Path) -> None:
    """Keep a held-out clip of each class, in the order of labels. On rank 0."""
    chosen: dict[int, Tensor] = {}
    for key in fixed_clips(dataset, len(dataset), dataset.seed):
        label = dataset.videos[key[1]].label
        if label is not None and label not in chosen:
            chosen[label] = dataset[key]["clip"]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_shown(path, torch.stack([chosen[label] for label in sorted(chosen)]), [classes[label] for label in sorted(chosen)])
