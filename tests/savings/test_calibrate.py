"""What is measured of a model, what is fitted to it, and samples that go by the fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from every import DENSE, made_up
from generation.sampled import SPEC, write_checkpoint
from led import lead_stack, script

from sparsevid.diffusion.samplers import euler, sampler_times
from sparsevid.diffusion.wrappers import with_guidance
from sparsevid.generation.calibration import fit_all, measure
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import saved
from sparsevid.savings.base import SavingError
from sparsevid.savings.calibrate import (
    Measured,
    Probe,
    fit_polynomial,
    fit_saving,
    measurements,
    share_left_out,
    thresholds_left_out,
)
from sparsevid.savings.magcache import MagCache
from sparsevid.savings.options import CALIBRATED
from sparsevid.savings.tally import Tally
from sparsevid.savings.teacache import TeaCache

PLANTED = [-2464.34137, 308.044764, 80.7447667, -4.11385132, 0.111001402]


def planted(clips: int = 3, calls: int = 12, noise: float = 0.0) -> list[Measured]:
    """Measurements, in two batches, whose output changes by a polynomial of d, and whose ratios are those of a curve."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for half in ("conditional", "null"):
        for size in (clips - 1, 1):
            for number in range(1, calls):
                d = 0.02 + 0.28 * torch.rand(size, generator=draw, dtype=torch.float64)
                change = torch.from_numpy(np.polyval(PLANTED, d.numpy()))
                ratio = torch.full_like(d, (1.0 if half == "null" else 0.9) + 0.01 * number)
                values = torch.stack([d, change, ratio])
                found.append(Measured(half, number, values + noise * torch.randn(values.shape, generator=draw)))
    return found


def test_planted_polynomials_and_ratios_are_found():
    measured = planted()
    tea = fit_saving("teacache", measured, DENSE, "abc", {"samples": 3})
    assert tea.values["coefficients"] == pytest.approx(PLANTED, rel=1e-6)
    assert tea.quality["r2"] == pytest.approx(1.0) and tea.quality["points"] == len(tea.points) == 3 * 11
    assert tea.values["range"] == [min(x for x, _ in tea.points), max(x for x, _ in tea.points)]
    mag = fit_saving("magcache", measured, DENSE, None, {})
    assert mag.values["conditional"] == pytest.approx([0.9 + 0.01 * number for number in range(1, 12)])
    assert mag.values["null"] == pytest.approx([1.0 + 0.01 * number for number in range(1, 12)])
    alone = [each for each in measured if each.half == "conditional" or each.number > 4]  # guidance in an interval of times
    assert fit_saving("magcache", alone, DENSE, None, {}).values.keys() == {"conditional"}
    assert fit_polynomial(np.arange(9.0), np.full(9, 2.0)) == pytest.approx([0, 0, 0, 0, 2], abs=1e-9)


def test_noise_shows_in_how_good_a_fit_is():
    good, bad = (fit_saving("teacache", planted(noise=noise), DENSE, None, {}) for noise in (1e-3, 0.5))
    assert 0.99 < good.quality["r2"] < 1.0 and bad.quality["r2"] < 0.7
    assert good.quality["correlation"] > bad.quality["correlation"]
    worse = fit_saving("magcache", planted(noise=0.3), DENSE, None, {})
    assert worse.quality["r2"] < fit_saving("magcache", planted(), DENSE, None, {}).quality["r2"] == pytest.approx(1.0)


def test_too_little_or_what_is_not_finite_is_refused():
    few = planted(clips=2, calls=3)
    with pytest.raises(SavingError, match="4 different points for 5 coefficients; take more samples, or more steps"):
        fit_saving("teacache", few, DENSE, None, {})
    for saving in CALIBRATED:
        with pytest.raises(SavingError, match="points|at least two calls"):
            fit_saving(saving, [], DENSE, None, {})
        broken = [few[0]._replace(values=few[0].values * float("nan")), *few[1:]]
        with pytest.raises(SavingError, match="not finite"):
            fit_saving(saving, broken, DENSE, None, {})


def test_a_probe_notes_each_clip_of_each_call():
    calls, probe = script(6), Probe()
    computed, _ = lead_stack(probe, calls)
    assert computed == list(range(6))
    distances, changes, ratios = measurements(probe.measured, "conditional")
    for number in range(1, 6):
        before, now = calls[number - 1], calls[number]
        outputs = [each.x + each.added for each in (before, now)]
        for clip in range(2):
            old, new = before.modulated[clip], now.modulated[clip]
            assert distances[clip, number - 1].item() == pytest.approx(((new - old).abs().mean() / old.abs().mean()).item())
            old, new = (each[clip] for each in outputs)
            assert changes[clip, number - 1].item() == pytest.approx(((new - old).abs().mean() / old.abs().mean()).item())
            added = [(output - each.x)[clip].norm(dim=-1) for output, each in zip(outputs, (before, now), strict=True)]
            assert ratios[clip, number - 1].item() == pytest.approx((added[1] / added[0]).mean().item())


@pytest.mark.parametrize("threshold", [0.05, 0.3, 1.0])
def test_the_share_left_out_is_that_of_the_rule_where_nothing_follows_from_it(threshold):
    calls, probe = script(25, clips=1), Probe()
    lead_stack(probe, calls)
    for policy in (
        TeaCache(threshold).with_fit(made_up("teacache", coefficients=[0.0, 0.0, 0.0, 1.0, 0.0])),
        MagCache(threshold).with_fit(fit_saving("magcache", probe.measured, DENSE, None, {})),
    ):
        computed, _ = lead_stack(policy, calls)
        assert share_left_out(policy, probe.measured) == pytest.approx(1 - len(computed) / 25)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_measuring_changes_nothing(guidance):
    model = DiffusionTransformer(replace(DENSE, num_classes=3)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, labels = torch.randn(2, 4, 1, 4, 4), torch.tensor([0, 2])
    probe = Probe()
    with torch.inference_mode():
        plain, measured = (
            euler(with_guidance(each, guidance, 3), x, 5, labels=labels)
            for each in (model, saved(model, probe, sampler_times("euler", 5)))
        )
    assert torch.equal(plain, measured)
    halves = {"conditional", "null"} if guidance > 1 else {"conditional"}
    assert {each.half for each in probe.measured} == halves and len(probe.measured) == 4 * len(halves)


@pytest.fixture(scope="module", params=["diffusion", "flow"])
def pipeline(request, tmp_path_factory) -> VideoPipeline:
    spec = SPEC if request.param == "diffusion" else replace(SPEC, layout="4D", sparse_grid=None, learn_sigma=False)
    folder = write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", spec, request.param)
    return VideoPipeline.from_pretrained(folder, device="cpu")


def test_from_a_checkpoint_to_samples_by_its_fits(pipeline):
    sampling = pipeline.sampling(steps=8, guidance=2.0, batch=2)
    measured = measure(pipeline, sampling, 3)
    assert sum(each.values.shape[1] for each in measured) == 2 * 3 * (len(sampling.times()) - 1)
    plain = pipeline.denoise([0, 1], sampling)
    for fit in fit_all(pipeline, sampling, 3, measured, list(CALIBRATED)):
        assert fit.sampling["samples"] == 3 and fit.sampling["sampler"] == sampling.sampler and len(fit.weights) == 64
        shares = thresholds_left_out(fit, (0.0, 0.1, 1.0, 1e9), measured)
        assert shares == sorted(shares) and shares[0] == 0.0 < shares[-1] < 1.0
        for threshold, exact in ((1e-30, True), (1e9, False)):
            tally = Tally()
            policy = CALIBRATED[fit.saving](threshold).with_fit(fit)
            found = pipeline.denoise([0, 1], sampling, savings=[policy], tally=tally)
            assert torch.equal(found, plain) == exact and (tally.share == 1.0) == exact
        other = replace(fit, spec={**fit.spec, "hidden_size": 99})
        with pytest.raises(SavingError, match="another model"):
            pipeline.denoise([0], sampling, savings=[CALIBRATED[fit.saving]().with_fit(other)])


def test_the_number_of_clips_in_a_batch_changes_no_point(pipeline):
    points = []
    for batch in (1, 3):
        sampling = pipeline.sampling(steps=4, batch=batch)
        points.append(measurements(measure(pipeline, sampling, 3), "conditional"))
    assert torch.allclose(*points, rtol=1e-3)
