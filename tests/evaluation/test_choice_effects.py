"""Effects of choices on a score: each is the score by the changed protocol, and what is lossy loses."""

import json

import pytest
import torch
from evaluation.small_videos import write_clips

from sparsevid.cli import main
from sparsevid.evaluation.clips.clips import choose_clips
from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.distortions import blur
from sparsevid.evaluation.effects import CODECS, DRAWS, Choice, choices, measure_effects, noise_of
from sparsevid.evaluation.evaluate import measure
from sparsevid.evaluation.protocols import load_protocol, with_fields


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def found(folders, protocol, kept):
    rules = with_fields(protocol, ["split=train"])
    return rules, measure_effects(*folders, build_detector("small"), rules, keep=kept)


def test_each_score_is_that_of_the_changed_protocol(folders, found):
    rules, effects = found
    own = measure(*folders, protocol=rules).record.score
    assert effects[0].score == pytest.approx(own, rel=1e-9) and effects[0].difference == 0
    by_choice = {each.choice: each for each in effects}
    changed = with_fields(rules, ["real_stride=2", "real_min_frames=null"])
    expected = measure(*folders, protocol=changed).record.score
    assert by_choice["real_stride=2, real_min_frames=null"].score == pytest.approx(expected, rel=1e-9)
    assert by_choice["real_stride=2, real_min_frames=null"].difference == pytest.approx(expected - own)
    half = by_choice["50% of the clips"]
    assert (half.real, half.fake) == (effects[0].real // 2, effects[0].fake // 2)
    too_long = by_choice["real_stride=8, real_min_frames=null"]
    assert too_long.score is None and "shorter than the 25 frames" in too_long.problem
    assert {each.kind for each in effects[1:]} == {each.kind for each in choices(rules, "train")}


def test_the_noise_is_what_draws_move_the_score_by(found):
    _, effects = found
    draws = [each.difference for each in effects if each.kind == "another draw"]
    assert noise_of(effects) == max(map(abs, draws)) > 0 and len(draws) == DRAWS
    assert noise_of(effects[:1]) is None


def test_what_is_kept_is_not_computed_again_and_gives_the_same(folders, found, kept, monkeypatch):
    rules, effects = found
    detector = build_detector("small")
    monkeypatch.setattr(detector, "extract", lambda clips: pytest.fail("computed again"))
    assert measure_effects(*folders, detector, rules, keep=kept) == effects


def test_every_choice_is_one_that_a_protocol_can_be_changed_to():
    for name in ("latte/ucf101", "stylegan-v/fvd2048_16f", "cd-fvd", "sparsevid/v2"):
        rules = load_protocol(name)
        for choice in choices(rules, "train"):
            assert choice.label
            if choice.options:
                assert with_fields(rules, choice.options) != rules, (name, choice)
    assert Choice("lossy codec", codec=("real", "JPEG, quality 75")).label == "real: JPEG, quality 75"


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_changes_pixels_and_keeps_what_is_shown(codec):
    noise = torch.randint(0, 256, (3, 4, 33, 47), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip = blur(noise, 1.0, torch.Generator())
    found = CODECS[codec](clip)
    assert found.shape == clip.shape and not found.equal(clip)
    assert (found.float() - clip.float()).abs().mean() < 6


def test_the_command_prints_and_writes_a_table(folders, protocol, tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps({**protocol.as_dict(), "name": "own"}), encoding="utf-8")
    real, fake = map(str, folders)
    out = tmp_path / "effects.json"
    status = main(
        ["evaluate", "effects", "--real", real, "--fake", fake, "--protocol", str(own), "--count", "8", "--out", str(out)]
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert status == 0 and "stride of real clips" in printed and "more than any other draw" in printed
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["protocol"]["name"] == "own" and written["effects"][0]["score"] > 0


def test_clips_that_do_not_fit_are_offered_their_own_length(tmp_path, protocol):
    folder = write_clips(tmp_path / "short", 4, 0, frames=3)
    with pytest.raises(ValueError, match="--protocol-option frames=3 --protocol-option fake_stride=1"):
        choose_clips(folder, "fake", protocol)
    choose_clips(folder, "fake", with_fields(protocol, ["frames=3", "fake_stride=1"]))
    record = {"num": 4, "settings": {}, "made_with": [], "clip": {"frames": 3, "stride": 2}}
    (folder / "samples.json").write_text(json.dumps(record), encoding="utf-8")
    options = ["frames=3", "fake_stride=1", "real_stride=2"]
    offered = " ".join(f"--protocol-option {each}" for each in options)
    with pytest.raises(ValueError, match=f"as the model was trained on, by the job's record .*{offered}"):
        choose_clips(folder, "fake", protocol)
    assert choose_clips(folder, "fake", with_fields(protocol, options)).origin["warnings"] == []
    (warning,) = choose_clips(folder, "fake", with_fields(protocol, options[:2])).origin["warnings"]
    assert "trained on clips of stride 2" in warning and warning.endswith("--protocol-option real_stride=2")
    for clip in ({"frames": "3", "stride": 2}, {"frames": 3}, [], {"frames": 3, "stride": 0}):
        (folder / "samples.json").write_text(json.dumps({**record, "clip": clip}), encoding="utf-8")
        assert choose_clips(folder, "fake", with_fields(protocol, options[:2])).origin["warnings"] == []
    with pytest.raises(ValueError, match="--protocol-option frames=3 --protocol-option real_stride=1"):
        choose_clips(folder, "real", with_fields(protocol, ["real_stride=2", "split=all"]))
