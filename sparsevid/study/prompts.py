"""Prompts of a study's samples: captions of held-out clips, whose classes say what the samples are to show.

Dimensions: N samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sparsevid.data.clips import fixed_clips
from sparsevid.data.open import open_data
from sparsevid.runs.config import RunConfig
from sparsevid.study.file import MeasureSettings
from sparsevid.study.heldout import heldout_config
from sparsevid.text.encoder import EncodedText
from sparsevid.training.validation import fixed_prompts, validation_dataset


class HeldOutPrompts(NamedTuple):
    """Captions of fixed held-out clips, evenly over classes.

    Attributes:
        texts: N; sample i has the i-th.
        labels: N, of the clips.
        encoded: their features, so that nothing encodes them.
    """

    texts: list[str]
    labels: list[int]
    encoded: EncodedText


def heldout_prompts(config: RunConfig, measure: MeasureSettings, count: int) -> HeldOutPrompts:
    """The prompts of `count` samples: of the split that is measured on, the same for all rows and seeds of training.

    All ranks call it together.

    Args:
        config: of a run with captions.
        measure: split and seed.
        count: N.

    Raises:
        ValueError: there is no such split, or see `open_data`.
    """
    config, manifest, dataset = open_data(heldout_config(config, measure))
    chosen = validation_dataset(config, manifest, dataset)
    texts, encoded = fixed_prompts(chosen, count)
    labels = [chosen.videos[index].label for _, index in fixed_clips(chosen, count, chosen.seed)]
    return HeldOutPrompts(texts, labels, encoded)


def shuffled_share(found: Sequence[int], labels: Sequence[int]) -> float:
    """The share of samples whose class is that of a prompt dealt out to it at random: the mean over all ways to deal them out.

    Args:
        found: the class that each sample is taken for, N.
        labels: the class of each prompt, N.
    """
    return sum(found.count(label) * labels.count(label) for label in set(labels)) / len(labels) ** 2
