"""The registry of metrics: each value is that of its function."""

import math
from dataclasses import asdict

import pytest
import torch

from sparsevid.evaluation.metrics.clip_score import Prompts, clip_score
from sparsevid.evaluation.metrics.distances import frechet_distance, frechet_with_ridge
from sparsevid.evaluation.metrics.inception_score import inception_score
from sparsevid.evaluation.metrics.kernel import jedi, kid, kvd
from sparsevid.evaluation.metrics.manifold import precision_recall
from sparsevid.evaluation.metrics.stream import temporal_likeness
from sparsevid.evaluation.metrics.table import METRICS
from sparsevid.system.seeding import Purpose, keyed_generator

GENERATOR = torch.Generator().manual_seed(0)
REAL, FAKE = torch.randn(30, 5, generator=GENERATOR), torch.randn(25, 5, generator=GENERATOR) + 0.5
PROMPTS = Prompts(torch.randn(25, 5, generator=GENERATOR), torch.arange(25) % 7)
OPTIONS = {"covariance": "unbiased", "seed": 3, "frames": 16, "prompts": PROMPTS}


def test_every_value_is_that_of_its_function():
    values = {name: metric.compute(REAL, FAKE, OPTIONS) for name, metric in METRICS.items()}
    order = torch.randperm(25, generator=keyed_generator(Purpose.IS_ORDER, 3))
    by_parts, score, manifold = kid(REAL, FAKE, seed=3), inception_score(FAKE[order]), precision_recall(REAL, FAKE)
    wide = precision_recall(REAL, FAKE, neighbours=5)
    shown = {name: value for name, value in asdict(clip_score(FAKE, PROMPTS)).items() if name != "value"}
    by_5000 = inception_score(FAKE, part=5000)
    assert values == {
        "frechet": {"frechet": frechet_distance(REAL, FAKE)},
        "spatial_frechet": {"spatial_frechet": frechet_distance(REAL, FAKE)},
        "clip_score": {"clip_score": clip_score(FAKE, PROMPTS).value} | {f"clip_score_{n}": v for n, v in shown.items()},
        "kid": {"kid": by_parts.value, "kid_std": by_parts.std},
        "kvd": {"kvd": kvd(REAL, FAKE)},
        "inception_score": {"inception_score": score.value, "inception_score_std": score.std},
        "jedi": {"jedi": jedi(REAL, FAKE)},
        "motion_frechet": {"motion_frechet": frechet_with_ridge(REAL, FAKE, 1e-5)},
        "stream_temporal": {"stream_temporal": temporal_likeness(REAL, FAKE)},
        "stream_spatial": {"stream_fidelity": wide.precision, "stream_diversity": wide.recall},
        "inception_score_adm": {"inception_score_adm": by_5000.value, "inception_score_adm_std": by_5000.std},
        "precision_recall": {
            "precision": manifold.precision,
            "recall": manifold.recall,
            "density": manifold.density,
            "coverage": manifold.coverage,
        },
    }
    assert all(isinstance(value, float) and math.isfinite(value) for found in values.values() for value in found.values())


def test_the_covariance_is_the_protocols():
    found = METRICS["frechet"].compute(REAL, FAKE, OPTIONS | {"covariance": "biased"})
    assert found == {"frechet": frechet_distance(REAL, FAKE, unbiased=False)}
    with pytest.raises(KeyError):
        METRICS["frechet"].compute(REAL, FAKE, OPTIONS | {"covariance": "other"})


def test_a_metric_that_compares_nothing_needs_no_real_clips():
    alone = {name: metric.compute(None, FAKE, OPTIONS) for name, metric in METRICS.items() if not metric.compares}
    assert set(alone) == {"inception_score", "inception_score_adm", "clip_score"}
    assert all(METRICS[name].compute(REAL, FAKE, OPTIONS) == values for name, values in alone.items())


def test_the_inception_score_does_not_depend_on_the_order_of_classes():
    """Ten classes of 100 sure samples each: by class, each of the ten parts would be of one class and score 1, not 10."""
    logits = 20 * torch.eye(10).repeat_interleave(100, dim=0)
    shuffled = logits[torch.randperm(1000, generator=torch.Generator().manual_seed(1))]
    scores = [METRICS["inception_score"].compute(None, each, OPTIONS)["inception_score"] for each in (logits, shuffled)]
    assert scores[0] == pytest.approx(scores[1], rel=0.02) and scores[0] > 9


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_takes_the_clips_that_it_says_at_least_and_no_fewer(name):
    metric = METRICS[name]
    real, fake = metric.least

    def compute(real, fake):
        prompts = Prompts(PROMPTS.features[:fake], PROMPTS.groups[:fake])
        return metric.compute(REAL[:real], FAKE[:fake], OPTIONS | {"prompts": prompts})

    assert compute(real, fake)
    for fewer in ((real - 1, fake), (real, fake - 1)):
        if min(fewer) >= 0:
            with pytest.raises(ValueError, match="at least"):
                compute(*fewer)


def test_no_two_metrics_share_a_name_of_a_value():
    names = [name for metric in METRICS.values() for name in metric.compute(REAL, FAKE, OPTIONS)]
    assert len(names) == len(set(names))
