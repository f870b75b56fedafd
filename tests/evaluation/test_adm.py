"""ADM's evaluation of images: its files, its statistics, and what is refused, against straight writings of each."""

import json
import pickle

import numpy as np
import pytest
import torch
from evaluation.feature_ranks import SmallNetwork
from scipy.linalg import sqrtm
from torch import Tensor, nn

from sparsevid.cli import main
from sparsevid.evaluation.clips.archives import from_file, is_file, read_statistics
from sparsevid.evaluation.clips.clips import choose_clips
from sparsevid.evaluation.detectors import DETECTORS, build_detector
from sparsevid.evaluation.evaluate import compare_features, extract_features, measure
from sparsevid.evaluation.features import load_features, save_features
from sparsevid.evaluation.metrics.distances import Moments, frechet_distance
from sparsevid.evaluation.protocols import load_protocol, with_fields
from sparsevid.videos.write import write_image_archive

fidelity = pytest.importorskip("torch_fidelity", reason="needs torch-fidelity (extra `fid`)")


class SmallParts(SmallNetwork):
    """Pool features, spatial features and logits of images, out of a few weights."""

    name, metric, dim = "small-parts", "FID", 15
    parts = {"features": slice(0, 6), "spatial": slice(6, 10), "logits": slice(10, 15)}  # noqa: RUF012

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.settings = {}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(3 * 6 * 6, 24), nn.GELU(), nn.Linear(24, 15))

    def extract(self, clips: Tensor) -> Tensor:
        return self.layers(clips.flatten(1).float() / 64)


@pytest.fixture(scope="module")
def protocol():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DETECTORS, SmallParts.name, (__name__, "SmallParts"))
        yield with_fields(load_protocol("adm/fid-50k"), ["detector=small-parts"])


def images(count: int, seed: int) -> Tensor:
    """uint8 (N,3,1,6,6), around colours of their own."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 150 + 10 * seed, (count, 3, 1, 1, 1), generator=generator)
    return (colours + torch.randint(0, 60, (count, 3, 1, 6, 6), generator=generator)).to(torch.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory, protocol):
    """A reference of 60 images with statistics of 90, and 80 generated images; with the features of all."""
    folder = tmp_path_factory.mktemp("adm")
    real, fake, detector = images(90, 1), images(80, 2), build_detector(SmallParts.name)
    features = [detector(each) for each in (real, fake)]
    arrays = {}
    for suffix, columns in (("", slice(0, 6)), ("_s", slice(6, 10))):
        part = features[0][:, columns].double().numpy()
        arrays |= {f"mu{suffix}": part.mean(axis=0), f"sigma{suffix}": np.cov(part, rowvar=False)}
    write_image_archive(folder / "reference.npz", real[:60], 60, arrays)
    write_image_archive(folder / "samples.npz", fake, 80, {"arr_1": np.arange(80) % 4})
    return folder / "reference.npz", folder / "samples.npz", *features


def test_each_value_is_that_of_a_straight_writing(protocol, files):
    """FID and sFID by the statistics of all, precision and recall by the images in the file: each for its own."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    reference, samples, real, fake = files
    record = measure(reference, samples, protocol=protocol).record
    theirs = [fid_features_to_statistics(each[:, :6].double()) for each in (real, fake)]
    assert record.score == pytest.approx(fid_statistics_to_metric(*theirs, False)["frechet_inception_distance"], rel=1e-8)
    a, b = (each[:, 6:10].double().numpy() for each in (real, fake))
    product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    gap, traces = a.mean(0) - b.mean(0), np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False))
    assert record.values["spatial_frechet"] == pytest.approx(gap @ gap + traces - 2 * np.trace(sqrtm(product)).real, rel=1e-8)
    score = isc_features_to_metric(fake[:, 10:], splits=1, shuffle=False)["inception_score_mean"]
    assert record.values["inception_score_adm"] == pytest.approx(score, rel=1e-10)
    found = calculate_precision_recall_full(fake[:, :6].double(), real[:60, :6].double(), 3)
    assert (record.values["precision"], record.values["recall"]) == pytest.approx(found, abs=1e-7)
    assert (record.real["clips"], record.real["statistics"]["dimensions"]) == (60, {"features": 6, "spatial": 4})


def test_fewer_images_than_asked_for_are_said_in_the_record(protocol, files):
    reference, samples, *_ = files
    record = measure(reference, samples, protocol=with_fields(protocol, ["fake_count=81"])).record
    assert any("80 clips" in text and "intends 81" in text for text in record.warnings)
    assert measure(reference, samples, protocol=with_fields(protocol, ["fake_count=80"])).record.warnings == ()


def test_a_reference_that_is_written_gives_the_score_of_its_images(protocol, files, tmp_path):
    """By the command, out of an archive of images: as far as the images themselves."""
    _, samples, real, fake = files
    own = tmp_path / "protocol.yaml"
    own.write_text(json.dumps({**protocol.as_dict(), "name": "own"}), encoding="utf-8")
    write_image_archive(tmp_path / "all.npz", images(90, 1), 90)
    made = ["--source", str(tmp_path / "all.npz"), "--out", str(tmp_path / "made.npz"), "--images", "50"]
    assert main(["evaluate", "reference", *made, "--protocol", str(own)]) == 0
    with np.load(tmp_path / "made.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s"} and archive["arr_0"].shape == (50, 6, 6, 3)
    out = tmp_path / "score.json"
    paths = ["--real", str(tmp_path / "made.npz"), "--fake", str(samples), "--out", str(out)]
    assert main(["evaluate", "score", *paths, "--protocol", str(own)]) == 0
    values = json.loads(out.read_text(encoding="utf-8"))["values"]
    assert values["frechet"] == pytest.approx(frechet_distance(real[:, :6], fake[:, :6]), rel=1e-6)


def test_statistics_alone_are_enough_for_a_distance_and_are_kept_with_the_features(protocol, files, tmp_path):
    reference, samples, real, fake = files
    with np.load(reference, allow_pickle=False) as archive:
        np.savez(tmp_path / "alone.npz", mu=archive["mu"], sigma=archive["sigma"])
    alone = with_fields(protocol, ["metrics=[frechet]"])
    detector = build_detector(SmallParts.name)
    sides = [
        extract_features(path, role, detector, alone, out=tmp_path / f"{role}.safetensors")
        for path, role in ((tmp_path / "alone.npz", "real"), (samples, "fake"))
    ]
    record = compare_features(*(load_features(tmp_path / f"{role}.safetensors") for role in ("real", "fake")))
    assert record.score == compare_features(*sides).score == pytest.approx(frechet_distance(real[:, :6], fake[:, :6]), rel=1e-6)
    with pytest.raises(ValueError, match="metric precision_recall takes 6 real clips or more, got 0"):
        measure(tmp_path / "alone.npz", samples, protocol=with_fields(alone, ["metrics=[frechet,precision_recall]"]))
    with pytest.raises(ValueError, match="takes the statistics of a reference file"):
        from sparsevid.evaluation.evaluate import Extras

        compare_features(*sides, Extras(bootstrap=10))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": np.zeros((2, 6, 6, 3), np.uint8)}, r"another layout: it holds images \(2, 6, 6, 3\); accepted: arr_0"),
        ({"arr_0": np.zeros((2, 6, 6, 3), np.float32)}, r"arr_0 is float32 \(2, 6, 6, 3\); accepted: uint8"),
        ({"mu": np.zeros(6)}, "holds mu without the other of mu and sigma"),
        ({"mu": np.zeros(9), "sigma": np.eye(9)}, "9 dimensions, and the features of detector 'small-parts' have 6"),
        ({"mu": np.zeros(6), "sigma": np.eye(5)}, r"got shapes \(6,\) and \(5, 5\)"),
        ({"mu": np.full(6, np.nan), "sigma": np.eye(6)}, "not finite"),
        ({"arr_0": np.array([{}, {}], dtype=object)}, "arr_0 is object"),
    ],
    ids=["no images", "not uint8", "half of it", "another layer", "shapes", "nan", "objects"],
)
def test_a_file_of_another_layout_is_refused_by_what_it_holds(protocol, tmp_path, arrays, reason):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=reason):
        choose_clips(tmp_path / "bad.npz", "real", protocol)


def test_generated_images_cannot_be_statistics_nor_clips_of_several_frames(protocol, files, tmp_path):
    np.savez(tmp_path / "alone.npz", mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(ValueError, match="holds no images"):
        choose_clips(tmp_path / "alone.npz", "fake", protocol)
    with pytest.raises(ValueError, match="takes clips of 4 frames"):
        choose_clips(files[1], "fake", with_fields(protocol, ["frames=4"]))
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.npz"):
        choose_clips(tmp_path / "none.npz", "fake", protocol)
    assert not is_file("samples")


def test_moments_are_those_of_the_features(protocol, files, tmp_path):
    _, _, real, fake = files
    for unbiased in (True, False):
        moments = Moments.of(real, unbiased=unbiased)
        expected = frechet_distance(real, fake, unbiased=unbiased)
        assert frechet_distance(moments, fake, unbiased=unbiased) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="have 15 dimensions, the features of generated ones 6"):
        frechet_distance(Moments.of(real), fake[:, :6])


def test_statistics_of_cdfvd_give_its_distance(tmp_path, protocol):
    stats = pytest.importorskip("cdfvd.utils.metric_utils", reason="needs cd-fvd (extra `test`)").FeatureStats
    draws = np.random.default_rng(0)
    real, fake = (draws.normal(size=(50, 6)).astype(np.float32) + shift for shift in (0, 1))
    theirs = []
    for features in (real, fake):
        theirs.append(stats(capture_mean_cov=True))
        theirs[-1].append(features)
    theirs[0].save(str(tmp_path / "real.pkl"))
    moments, count = read_statistics(tmp_path / "real.pkl", protocol)
    (mean, covariance), (fake_mean, fake_covariance) = (each.get_mean_cov() for each in theirs)
    expected = ((mean - fake_mean) ** 2).sum() + np.trace(
        covariance + fake_covariance - 2 * sqrtm(covariance @ fake_covariance)
    )
    found = frechet_distance(moments["features"], torch.from_numpy(fake), unbiased=False)
    assert (count, found) == (50, pytest.approx(expected.real, rel=1e-6))
    choice = from_file(tmp_path / "real.pkl", "real", protocol, None, None)
    assert choice.ids == () and choice.origin["statistics"]["clips"] == 50


class Malicious:
    """Would create a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def test_code_in_statistics_is_not_run(tmp_path, protocol):
    sign = tmp_path / "was-run"
    (tmp_path / "code.pkl").write_bytes(pickle.dumps({"num_items": Malicious(str(sign))}))
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"mean": np.zeros(3)}))
    with pytest.raises(ValueError, match="more than numbers and arrays"):
        read_statistics(tmp_path / "code.pkl", protocol)
    assert not sign.exists()
    with pytest.raises(ValueError, match="no statistics of cd-fvd"):
        read_statistics(tmp_path / "other.pkl", protocol)


def test_an_archive_is_the_same_bytes_and_says_what_does_not_fit(tmp_path):
    for name in ("a", "b"):
        write_image_archive(tmp_path / f"{name}.npz", images(5, 0), 5, {"arr_1": np.arange(5)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["arr_0"], images(5, 0)[:, :, 0].permute(0, 2, 3, 1).numpy())
    for given, count in ((images(4, 0), 5), (images(6, 0), 5)):
        with pytest.raises(ValueError, match=f"an archive of 5 images .* and {len(given)} came"):
            write_image_archive(tmp_path / "c.npz", given, count)
    with pytest.raises(ValueError, match="image 1 has size"):
        write_image_archive(tmp_path / "c.npz", [images(1, 0)[0], images(1, 0)[0, :, :, :5]], 2)
    assert not (tmp_path / "c.npz").exists()


def test_features_of_another_detector_are_not_compared(protocol, files, tmp_path):
    reference, samples, *_ = files
    real, fake = (extract_features(path, role, build_detector(SmallParts.name), protocol) for path, role in
                  ((reference, "real"), (samples, "fake")))  # fmt: skip
    import dataclasses

    save_features(dataclasses.replace(fake, detector="small"), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="detector of real is small-parts, of fake small"):
        from sparsevid.evaluation.features import check_comparable

        check_comparable(real, load_features(tmp_path / "other.safetensors"))
