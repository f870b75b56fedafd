"""Files of fits: read back as they were written, and refused where they are of something else."""

import json
from dataclasses import replace

import pytest
from every import DENSE, made_up
from generation.sampled import write_checkpoint

from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.savings import parse_saving
from sparsevid.savings.base import SavingError
from sparsevid.savings.fits import fit_file, fits_folder, read_fit
from sparsevid.savings.magcache import MagCache
from sparsevid.savings.teacache import TeaCache
from sparsevid.system.checksums import file_sha256

TEA = replace(made_up("teacache", coefficients=[1.0, -2.0, 3.0, 0.5, 0.1], range=[0.1, 0.4]), points=[(0.1, 0.25), (0.4, 1.0)])
MAG = made_up("magcache", conditional=[0.9, 1.1, 0.8])


@pytest.mark.parametrize("fit", [TEA, MAG])
def test_a_fit_is_read_back_as_it_was_written(tmp_path, fit):
    fit.save(fit_file(tmp_path / "savings", fit.saving))
    assert read_fit(fit_file(tmp_path / "savings", fit.saving), fit.saving) == fit
    assert [path.name for path in (tmp_path / "savings").iterdir()] == [f"{fit.saving}.json"]


def test_a_policy_finds_its_models_fit_unless_one_is_named(tmp_path):
    TEA.save(fit_file(tmp_path, "teacache"))
    other = replace(TEA, values={"coefficients": [0.0] * 5})
    other.save(tmp_path / "other.json")
    found = parse_saving("teacache:threshold=0.2").with_fits(tmp_path)
    assert found.fitted == TEA and found.threshold == 0.2 and found.fresh("null").fitted == TEA
    named = parse_saving(f"teacache:fit={tmp_path / 'other.json'}")
    assert named.fitted == named.with_fits(tmp_path).fitted == named.fresh("null").fitted == other
    static = parse_saving("static:every=2")
    assert static.with_fits(tmp_path) == static and static.record() == str(static)
    for folder in (None, tmp_path / "none"):
        with pytest.raises(SavingError, match="sparsevid calibrate"):
            parse_saving("teacache").with_fits(folder).check(DENSE)
    with pytest.raises(SavingError, match=r"there is no fit .*/none\.json; `sparsevid calibrate MODEL --saving magcache`"):
        parse_saving(f"magcache:fit={tmp_path}/none.json").check(DENSE)


def test_a_pipeline_reads_a_fit_once(tmp_path):
    """So that what a job records is what all its batches go by."""
    folder = write_checkpoint(tmp_path / "checkpoint")
    pipeline = VideoPipeline.from_pretrained(folder, device="cpu")
    fit = made_up("teacache", pipeline.model.spec, coefficients=[0.0, 0.0, 0.0, 1.0, 0.0])
    with pytest.raises(SavingError, match="sparsevid calibrate"):
        pipeline.sampling(savings=["teacache"])
    fit.save(fit_file(fits_folder(pipeline.weights_file), "teacache"))
    sampling = pipeline.sampling(savings=["teacache"])
    replace(fit, values={"coefficients": [0.0] * 5}).save(fit_file(fits_folder(pipeline.weights_file), "teacache"))
    assert [each.fitted for each in pipeline.policies(sampling)] == [fit]
    assert VideoPipeline.from_pretrained(folder, device="cpu").policies(sampling)[0].fitted.digest != fit.digest


def test_samples_are_told_apart_by_what_a_fit_holds_not_by_its_path(tmp_path):
    one = TeaCache(0.1).with_fit(TEA)
    TEA.save(tmp_path / "here.json")
    assert (
        one.record()
        == TeaCache(0.1, fit=str(tmp_path / "here.json")).record()
        == f"teacache:threshold=0.1,fit=sha256-{TEA.digest}"
    )
    assert one.record() == TeaCache(0.1).with_fit(replace(TEA, points=[], weights="0")).record()  # which decide alike
    other = TeaCache(0.1).with_fit(replace(TEA, values={**TEA.values, "range": [0.1, 0.5]}))
    assert len({one.record(), other.record(), TeaCache(0.2).with_fit(TEA).record()}) == 3
    assert TeaCache(0.0, fit="none.json").record() == TeaCache(0.0).with_fit(TEA).record() == "teacache:threshold=0.0"
    assert parse_saving(str(MagCache(0.1, skips=2))) == MagCache(0.1, skips=2)


def test_a_fit_of_another_model_is_refused_with_what_differs():
    TeaCache().with_fit(TEA).check(DENSE)
    with pytest.raises(SavingError, match=r"another model \(layout '3D' there, '4D' here\); `sparsevid calibrate"):
        TeaCache().with_fit(TEA).check(replace(DENSE, layout="4D"))
    TeaCache(0).with_fit(TEA).check(replace(DENSE, layout="4D"))  # which needs none


def test_a_fit_that_lies_beside_other_weights_is_refused_unless_it_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    path = fit_file(tmp_path / "savings", "teacache")
    replace(TEA, weights=file_sha256(tmp_path / "model.safetensors")).save(path)
    assert parse_saving("teacache").with_fits(tmp_path / "savings").fitted.values == TEA.values
    (tmp_path / "model.safetensors").write_bytes(b"others")
    with pytest.raises(SavingError, match=r"is of other weights than .*model\.safetensors; `sparsevid calibrate MODEL"):
        parse_saving("teacache").with_fits(tmp_path / "savings")
    assert parse_saving(f"teacache:fit={path}").with_fits(tmp_path / "savings").fitted.values == TEA.values


DAMAGES = {
    "cut off": (lambda text: text[: len(text) // 2], "cannot be read"),
    "no text": (lambda text: b"\xff\xfe\x00", "cannot be read"),
    "deep": (lambda text: "[" * 100_000, "cannot be read"),
    "a list": (lambda text: "[]", "is no file that"),
    "another file": (lambda text: '{"score": 1}', "is no file that"),
    "version": (lambda text: text.replace('"version": 1', '"version": 2'), "version 2, not 1"),
    "a key more": (lambda text: text.replace('"version"', '"more": 1, "version"'), "has too much, more"),
    "a key less": (lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "points"}), "lacks.* points"),
    "another saving": (lambda text: text.replace('"teacache"', '"magcache"'), "is one of 'magcache'"),
    "values": (lambda text: json.dumps({**json.loads(text), "values": [1]}), r"values = \[1\] is not an object"),
    "weights": (lambda text: json.dumps({**json.loads(text), "weights": 3}), "weights = 3 is not text"),
    "not finite": (lambda text: text.replace("-2.0", "NaN"), "coefficients = .* not a list of finite numbers"),
    "infinite": (lambda text: text.replace("-2.0", "1e999"), "coefficients = .* not a list of finite numbers"),
    "too large": (lambda text: text.replace("-2.0", "1" * 400), "coefficients = .* not a list of finite numbers"),
    "text": (lambda text: text.replace("-2.0", '"-2"'), "coefficients = .* not a list of finite numbers"),
    "a flag": (lambda text: text.replace("-2.0", "true"), "coefficients = .* not a list of finite numbers"),
    "degree": (lambda text: text.replace("-2.0,", ""), "coefficients has 4 numbers, not 5"),
    "none": (lambda text: text.replace('"coefficients"', '"ratios"'), "coefficients has 0 numbers, not 5"),
    "points": (lambda text: json.dumps({**json.loads(text), "points": [[1, 2, 3]]}), "points are pairs"),
    "quality": (lambda text: json.dumps({**json.loads(text), "quality": {"r2": "good"}}), "quality = .* finite numbers"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(tmp_path, damage):
    change, said = DAMAGES[damage]
    path = fit_file(tmp_path, "teacache")
    TEA.save(path)
    changed = change(path.read_text(encoding="utf-8"))
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(SavingError, match=f"saving teacache: the fit .*teacache.json.*{said}"):
        parse_saving("teacache").with_fits(tmp_path)


LARGE = ({"conditional": [1e300, 1e300]}, "multiply to more than a float holds")


def test_a_range_that_falls_is_refused(tmp_path):
    replace(TEA, values={**TEA.values, "range": [0.5, 0.1]}).save(fit_file(tmp_path, "teacache"))
    with pytest.raises(SavingError, match=r"is damaged: the range goes from 0\.5 to 0\.1"):
        parse_saving("teacache").with_fits(tmp_path)


def test_ratios_that_cannot_be_are_refused(tmp_path):
    for values, said in (({"conditional": [0.9, 0.0]}, "above 0"), ({"null": [0.9]}, "conditional has 0 numbers"), LARGE):
        replace(MAG, values=values).save(fit_file(tmp_path, "magcache"))
        with pytest.raises(SavingError, match=said):
            parse_saving("magcache").with_fits(tmp_path)
    with pytest.raises(SavingError, match="cannot be read"):
        parse_saving(f"magcache:fit={tmp_path}").check(DENSE)
