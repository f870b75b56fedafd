"""How long rows will take, by lines of the same hardware."""

import pytest

from sparsevid.study.estimate import Rates
from sparsevid.study.plan import Study


def line(plan, hardware: str, training: float, measuring: float | None, clips: int = 4) -> dict:
    found = {"hardware": hardware, "training_macs": plan.training_macs, "training_seconds": training, "macs": plan.sampled_macs}
    return found | {"measuring_seconds": measuring, "clips": clips}


def test_rows_take_what_their_multiply_adds_took_elsewhere(study_file):
    rows = {
        "pretrain": {"measured": False},
        "dense": {"start": "pretrain"},
        "longer": {"like": "dense", "overrides": {"train.steps": 9}},
        "few": {"of": "dense", "sample": {"steps": 1}},
    }
    study = Study(path := study_file(rows=rows), path.parent / "runs")
    pretrain, dense, longer, few = (study.plan(name, 0) for name in rows)
    assert Rates([]).seconds(dense, "here") is None and Rates([line(dense, "there", 6.0, 8.0)]).seconds(dense, "here") is None
    rates = Rates([line(dense, "here", 6.0, 8.0), line(dense, "there", 600.0, 800.0)])
    assert rates.training_seconds(longer, "here") == pytest.approx(18.0)
    assert rates.training_seconds(longer, "here", done=6) == pytest.approx(6.0)
    assert rates.seconds(longer, "here") == pytest.approx(18.0 + 6.0 + 8.0)  # with what it starts from
    assert rates.seconds(pretrain, "here") == pytest.approx(6.0) and rates.measuring_seconds(few, "here") == pytest.approx(4.0)
    assert rates.together([dense, longer, few], "here") == pytest.approx(6.0 + 6.0 + 18.0 + 8.0 + 8.0 + 4.0)  # each run once
    told_apart = Rates([line(dense, "here", 6.0, 8.0), line(few, "here", 6.0, 5.0)])  # 2 s are for other things
    assert told_apart.measuring_seconds(few, "here") == pytest.approx(5.0)
    copied = Rates([line(dense, "here", 6.0, 8.0), line(dense, "here", 99.0, 99.0) | {"same_as": "x/y"}])
    assert copied.seconds(longer, "here") == pytest.approx(32.0)
    resumed = Rates([line(dense, "here", 6.0, None)])  # of which nobody knows how long all of it took
    assert resumed.training_seconds(dense, "here") == pytest.approx(6.0) and resumed.seconds(dense, "here") is None
