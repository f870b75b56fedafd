"""Outbursts of gradients are told from what good runs do."""

import numpy as np
import pytest

from sparsevid.training.outcome import GradientNorms
from sparsevid.training.trainer import Trainer

NOISE = np.exp(np.random.default_rng(0).normal(0, 0.5, 400))  # of norms of single steps


def warnings(norms, caplog) -> list[int]:
    """The steps at which a run with these gradient norms is warned of."""
    caplog.clear()
    watched = GradientNorms()
    for step, norm in enumerate(norms):
        watched.add(float(norm), step)
    return [int(each.getMessage().split(":")[0].removeprefix("step ")) for each in caplog.records]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_noise_slow_growth_and_single_steps_are_no_outburst(scale, caplog):
    single = np.where(np.arange(400) % 10 == 0, 100.0, 1.0)
    for factor in (np.ones(400), np.geomspace(1, 50, 400), np.geomspace(50, 1, 400), single):
        assert warnings(scale * NOISE * factor, caplog) == []


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_an_outburst_is_said_at_once_and_once(scale, caplog):
    wild = scale * NOISE
    wild[200:260] *= 100
    (step,) = warnings(wild, caplog)
    assert 203 <= step < 206
    assert "of 4 of the last 20 steps are over 10 times the median of the" in caplog.text
    wild[200:260:2] = scale  # every other step is as before
    (step,) = warnings(wild, caplog)
    assert 206 <= step < 212


def test_before_70_steps_nothing_is_usual(caplog):
    wild = NOISE.copy()
    wild[20:] *= 100
    assert warnings(wild[:69], caplog) == [] and warnings(np.r_[NOISE[:65], 100 * NOISE[:5]], caplog) == [69]


def test_a_run_watches_the_norm_of_each_step_that_is_applied(tiny, monkeypatch, caplog):
    for name, value in {"RECENT": 2, "HIGH": 2, "TIMES": 0.0, "LEAST": 1}.items():
        monkeypatch.setattr(GradientNorms, name, value)
    Trainer(tiny("train.checkpoint_every=6")[0]).train()
    assert [each.getMessage()[:7] for each in caplog.records if "gradient norms" in each.getMessage()] == ["step 2:", "step 5:"]
