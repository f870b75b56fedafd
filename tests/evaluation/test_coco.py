"""Prompts drawn from captions, and FID on folders in COCO's form."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from evaluation.feature_ranks import SmallNetwork
from PIL import Image

from sparsevid.cli import main
from sparsevid.evaluation.detectors import DETECTORS, build_detector
from sparsevid.evaluation.evaluate import measure
from sparsevid.evaluation.metrics.distances import frechet_distance
from sparsevid.evaluation.prompts import draw_prompts, listed_in
from sparsevid.evaluation.protocols import load_protocol, with_fields
from sparsevid.generation.formats import SHEET
from sparsevid.videos.sheets import write_contact_sheet

REAL, FAKE, SIDE = 24, 20, 12


class Flat(SmallNetwork):
    """One map of all pixels of an image."""

    name, metric = "flat", "FD-Flat"

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = torch.nn.Linear(3 * SIDE * SIDE, self.dim)

    def extract(self, clips: torch.Tensor) -> torch.Tensor:
        return self.layers(clips.flatten(1).float() / 255)


def caption(image: int, number: int) -> str:
    return f"image {image}, caption {number}"


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """Captions of 40 images, two or three each, in the order in which COCO's file has them, which is none."""
    annotations = [
        {"image_id": image, "id": 100 * image + number, "caption": f" image  {image}, caption {number}\n"}
        for image in range(40)
        for number in range(2 + image % 2)
    ]
    np.random.default_rng(0).shuffle(annotations)
    path = tmp_path_factory.mktemp("coco") / "captions.json"
    path.write_text(json.dumps({"images": [], "annotations": annotations}))
    return path


def test_each_image_gives_one_of_its_captions_at_most(captions):
    found = draw_prompts(captions, 30)
    assert len({text.split(",")[0] for text in found}) == len(found) == 30
    known = {caption(image, number) for image in range(40) for number in range(2 + image % 2)}
    assert set(found) <= known and found == draw_prompts(captions, 30)
    assert draw_prompts(captions, 10) != draw_prompts(captions, 10, seed=1)
    assert sorted(text.split(",")[0] for text in draw_prompts(captions)) == sorted(f"image {image}" for image in range(40))


def test_images_and_captions_are_drawn_alike(captions):
    """Over 300 seeds: of an image's captions each as often, and each image as often as it is asked for."""
    drawn = Counter(text for seed in range(300) for text in draw_prompts(captions, 10, seed))
    images = [sum(drawn[caption(image, number)] for number in range(3)) for image in range(40)]
    assert sum(images) == 3000 and min(images) > 75 - 4 * 7.5 and max(images) < 75 + 4 * 7.5
    evens = [sum(drawn[caption(image, number)] for image in range(0, 40, 2)) for number in range(2)]
    assert abs(evens[0] - evens[1]) < 4 * sum(evens) ** 0.5


def test_the_command_writes_a_prompt_a_line(captions, tmp_path):
    out = tmp_path / "prompts.txt"
    assert main(["evaluate", "prompts", "--captions", str(captions), "--count", "30", "--out", str(out)]) == 0
    assert listed_in(out) == draw_prompts(captions, 30)
    assert sorted(draw_prompts(out)) == sorted(listed_in(out))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "holds no captions as COCO has them"),
        ("[]", "holds no captions as COCO has them"),
        ('{"annotations": [{"image_id": 1}]}', "'caption'"),
        ('{"annotations": [{"image_id": 1, "caption": " "}]}', "image 1 has an empty caption"),
        ('{"annotations": []}', "0 prompts are asked for, .* captions of 0"),
    ],
)
def test_captions_of_another_layout_are_refused(tmp_path, content, reason):
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        draw_prompts(tmp_path / "captions.json")


def test_more_prompts_than_images_are_refused(captions, tmp_path):
    with pytest.raises(ValueError, match="41 prompts are asked for, .* has captions of 40"):
        draw_prompts(captions, 41)
    with pytest.raises(FileNotFoundError, match="no file"):
        draw_prompts(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"table\.csv: accepted are captions as COCO has them"):
        draw_prompts(tmp_path / "table.csv")  # its head would be a prompt


@pytest.fixture(scope="module")
def protocol():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DETECTORS, Flat.name, (__name__, Flat.__name__))
        options = ["detector=flat", f"size=[{SIDE},{SIDE}]", f"fake_count={FAKE}"]
        yield with_fields(load_protocol("coco/fid-30k"), options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Real images of several sizes, upright and across, and square generated ones."""
    root, draws = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, count in (("real", REAL), ("fake", FAKE)):
        (root / name).mkdir()
        for number in range(count):
            size = (SIDE, SIDE) if name == "fake" else [(16, 20), (20, 16), (15, 15)][number % 3]
            pixels = draws.integers(0, 200, (1, 1, 3)) + draws.integers(0, 56, (*size, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:06d}.png")
    return root / "real", root / "fake"


def test_all_real_images_count_and_as_many_generated_ones_as_the_protocol_says(folders, protocol):
    record = measure(*folders, protocol=protocol).record
    assert (record.real["clips"], record.fake["clips"], record.warnings) == (REAL, FAKE, ())
    assert record.metric == "FD-Flat" and record.split == "all"
    fewer = measure(*folders, protocol=with_fields(protocol, [f"fake_count={FAKE + 1}"])).record
    assert any(f"{FAKE} clips" in text and f"intends {FAKE + 1}" in text for text in fewer.warnings)
    assert measure(*folders, protocol=protocol, count=FAKE - 1).record.fake["clips"] == FAKE - 1


def test_the_contact_sheet_of_a_job_is_none_of_its_samples(folders, protocol, tmp_path):
    samples = shutil.copytree(folders[1], tmp_path / "samples")
    write_contact_sheet(samples / SHEET, torch.zeros(2, 3, 1, SIDE, 2 * SIDE, dtype=torch.uint8))
    for options in ([], ["fake_count=null"]):
        own = with_fields(protocol, options)
        with_sheet, without = (measure(folders[0], fake, protocol=own).record for fake in (samples, folders[1]))
        assert with_sheet.fake["clips"] == FAKE and with_sheet.score == without.score


def test_statistics_in_a_file_stand_for_the_real_images(folders, protocol, tmp_path):
    """As pytorch-fid writes them, of images that were scaled to cover the size and cut at the centre."""
    from sparsevid.evaluation.clips.clips import choose_clips

    detector = build_detector(Flat.name)
    sides = [choose_clips(folder, role, protocol) for folder, role in zip(folders, ("real", "fake"), strict=True)]
    real, fake = (detector(torch.stack([clip for _, clip in clips])) for clips in sides)
    values = real.double().numpy()
    np.savez(tmp_path / "coco.npz", mu=values.mean(axis=0), sigma=np.cov(values, rowvar=False))
    record = measure(tmp_path / "coco.npz", folders[1], protocol=protocol).record
    assert record.score == pytest.approx(frechet_distance(real, fake), rel=1e-6)
    assert record.score == pytest.approx(measure(*folders, protocol=protocol).record.score, rel=1e-5)


def test_the_protocol_is_what_its_head_says():
    protocol = load_protocol("coco/fid-30k")
    assert (protocol.fake_count, protocol.real_count, protocol.size, protocol.resize) == (30000, None, (256, 256), "cover")
    assert (protocol.detector, protocol.metrics, protocol.frames) == ("inception-2015", ("frechet",), 1)
