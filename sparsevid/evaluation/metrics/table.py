"""The metrics that a protocol may name, and what each of them needs.

Dimensions: N real clips, M fake clips, D feature dimensions or classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sparsevid.evaluation.metrics.clip_score import clip_score
from sparsevid.evaluation.metrics.distances import Moments, frechet_distance, frechet_with_ridge
from sparsevid.evaluation.metrics.inception_score import SPLITS, inception_score
from sparsevid.evaluation.metrics.kernel import jedi, kid, kvd
from sparsevid.evaluation.metrics.manifold import DENSITY_NEIGHBOURS, NEIGHBOURS, precision_recall
from sparsevid.evaluation.metrics.stream import temporal_likeness
from sparsevid.system.seeding import Purpose, keyed_generator

Options = Mapping[str, Any]  # a protocol's fields by name
_UNBIASED = {"unbiased": True, "biased": False}
FVMD_RIDGE = 1e-5  # as `fvmd` computes its score
STREAM_NEIGHBOURS = 5
ADM_PART = 5000  # samples of a split of the Inception score in ADM's evaluator


@dataclass(frozen=True)
class Metric:
    """A way to judge generated clips by their features.

    Attributes:
        name: under which a protocol names it.
        title: for tables and plots.
        needs: the detector's output that it takes, see `Detector.outputs`.
        compares: whether it needs real features beside the fake ones.
        compute: (real (N, D) or None, fake (M, D), options) → values by name, the headline first. Of the options it reads
            "covariance" ("unbiased" or "biased"), "seed" (of random subsets and orders) and, of a metric that is `prompted`,
            "prompts" (`clip_score.Prompts`, of the fake clips).
        least: real and generated clips that it takes at least.
        by_moments: it takes mean and covariance of the real features, too, in their place.
        higher: more is better.
        prompted: it judges clips by the prompts that they were made of.
    """

    name: str
    title: str
    needs: str
    compares: bool
    compute: Callable[[Any, Tensor, Options], dict[str, float]]
    least: tuple[int, int] = (2, 2)
    by_moments: bool = False
    higher: bool = False
    prompted: bool = False


def _frechet(real: Tensor | Moments, fake: Tensor, options: Options) -> dict[str, float]:
    return {"frechet": frechet_distance(real, fake, unbiased=_UNBIASED[options["covariance"]])}


def _spatial_frechet(real: Tensor | Moments, fake: Tensor, options: Options) -> dict[str, float]:
    return {"spatial_frechet": frechet_distance(real, fake, unbiased=_UNBIASED[options["covariance"]])}


def _kid(real: Tensor, fake: Tensor, options: Options) -> dict[str, float]:
    found = kid(real, fake, seed=options["seed"])
    return {"kid": found.value, "kid_std": found.std}


def _kvd(real: Tensor, fake: Tensor, options: Options) -> dict[str, float]:
    return {"kvd": kvd(real, fake)}


def _inception_score(real: Tensor | None, fake: Tensor, options: Options) -> dict[str, float]:
    # In the order of their names, samples of one class may be neighbours, and so are the frames of one video.
    order = torch.randperm(len(fake), generator=keyed_generator(Purpose.IS_ORDER, options["seed"]))
    found = inception_score(fake[order.to(fake.device)])
    return {"inception_score": found.value, "inception_score_std": found.std}


def _inception_score_adm(real: Tensor | None, fake: Tensor, options: Options) -> dict[str, float]:
    found = inception_score(fake, part=ADM_PART)  # in the order of the samples, as there
    return {"inception_score_adm": found.value, "inception_score_adm_std": found.std}


def _precision_recall(real: Tensor, fake: Tensor, options: Options) -> dict[str, float]:
    return asdict(precision_recall(real, fake))


def _jedi(real: Tensor, fake: Tensor, options: Options) -> dict[str, float]:
    return {"jedi": jedi(real, fake)}


def _motion_frechet(real: Tensor, fake: Tensor, options: Options) -> dict[str, float]:
    return {"motion_frechet": frechet_with_ridge(real, fake, FVMD_RIDGE)}


def _stream_temporal(real: Tensor, fake: Tensor, options: Options) -> dict[str, float]:
    return {"stream_temporal": temporal_likeness(real, fake)}


def _stream_spatial(real: Tensor, fake: Tensor, options: Options) -> dict[str, float]:
    found = precision_recall(real, fake, neighbours=STREAM_NEIGHBOURS)
    return {"stream_fidelity": found.precision, "stream_diversity": found.recall}


def _clip_score(real: Tensor | None, fake: Tensor, options: Options) -> dict[str, float]:
    found = {f"clip_score_{name}": value for name, value in asdict(clip_score(fake, options["prompts"])).items()}
    return {"clip_score": found.pop("clip_score_value"), **{name: value for name, value in found.items() if value is not None}}


METRICS = {
    metric.name: metric
    for metric in (
        Metric("frechet", "Fréchet distance", "features", True, _frechet, by_moments=True),
        Metric("spatial_frechet", "sFID", "spatial", True, _spatial_frechet, by_moments=True),
        Metric("kid", "KID", "features", True, _kid),
        Metric("kvd", "KVD", "features", True, _kvd),
        Metric("inception_score", "Inception score", "logits", False, _inception_score, (0, SPLITS), higher=True),
        Metric("inception_score_adm", "Inception score", "logits", False, _inception_score_adm, (0, 1), higher=True),
        Metric("jedi", "JEDi", "features", True, _jedi, (1, 1)),
        Metric("clip_score", "CLIP score", "features", False, _clip_score, (0, 2), higher=True, prompted=True),
        Metric("motion_frechet", "FVMD's distance", "motion", True, _motion_frechet),
        Metric("stream_temporal", "STREAM-T", "skewness", True, _stream_temporal, (1, 1), higher=True),
        Metric("stream_spatial", "STREAM-F", "mean", True, _stream_spatial, (STREAM_NEIGHBOURS + 1,) * 2, higher=True),
        Metric(
            "precision_recall",
            "precision",
            "features",
            True,
            _precision_recall,
            (DENSITY_NEIGHBOURS + 1, NEIGHBOURS + 1),
            higher=True,
        ),
    )
}
