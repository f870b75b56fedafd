"""The registry of metrics: each value is that of its function."""

import math

import pytest
import torch

from sparsevid.evaluation.distances import frechet_distance
from sparsevid.evaluation.inception_score import inception_score
from sparsevid.evaluation.kernel import kid, kvd
from sparsevid.evaluation.manifold import precision_recall
from sparsevid.evaluation.metrics import METRICS

GENERATOR = torch.Generator().manual_seed(0)
REAL, FAKE = torch.randn(30, 5, generator=GENERATOR), torch.randn(25, 5, generator=GENERATOR) + 0.5
OPTIONS = {"covariance": "unbiased", "seed": 3, "frames": 16}


def test_every_value_is_that_of_its_function():
    values = {name: metric.compute(REAL, FAKE, OPTIONS) for name, metric in METRICS.items()}
    by_parts, score, manifold = kid(REAL, FAKE, seed=3), inception_score(FAKE), precision_recall(REAL, FAKE)
    assert values == {
        "frechet": {"frechet": frechet_distance(REAL, FAKE)},
        "kid": {"kid": by_parts.value, "kid_std": by_parts.std},
        "kvd": {"kvd": kvd(REAL, FAKE)},
        "inception_score": {"inception_score": score.value, "inception_score_std": score.std},
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
    alone = [metric.compute(None, FAKE, OPTIONS) for metric in METRICS.values() if not metric.compares]
    assert alone == [METRICS["inception_score"].compute(REAL, FAKE, OPTIONS)]


def test_no_two_metrics_share_a_name_of_a_value():
    names = [name for metric in METRICS.values() for name in metric.compute(REAL, FAKE, OPTIONS)]
    assert len(names) == len(set(names))
