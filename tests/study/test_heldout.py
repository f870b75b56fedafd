"""What rows are measured by: times, noise and clips that are the same for all, real clips against real ones."""

import math
from dataclasses import replace

import pytest
import torch
from study.tiny_study import ROWS, write_study

from sparsevid.evaluation.classifier import ClipClassifier
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.sparsity.times import LogitNormalTimes
from sparsevid.study import StudyError
from sparsevid.study.file import MeasureSettings
from sparsevid.study.heldout import heldout_losses, time_edges
from sparsevid.study.measure import _losses, kept_losses
from sparsevid.study.plan import Study
from sparsevid.study.reference import open_reference, study_protocol
from sparsevid.study.train import Budget, is_trained, steps_done, train, training_seconds


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Plans of a dense and a sparse row, trained."""
    folder = tmp_path_factory.mktemp("heldout")
    study = Study(write_study(folder, rows=ROWS, data=data), folder / "runs")
    plans = {name: study.plan(name, 0) for name in ROWS}
    for plan in plans.values():
        train(plan, Budget())
    return plans


@pytest.fixture(scope="module")
def pipelines(trained):
    return {name: VideoPipeline.from_pretrained(plan.folder, device="cpu") for name, plan in trained.items()}


def test_a_trained_run_keeps_what_sampling_needs(trained):
    for plan in trained.values():
        assert is_trained(plan) and steps_done(plan) == 3
        assert [path.name for path in (plan.folder / "checkpoints").iterdir()] == ["step-0000003"]
        assert not (plan.folder / "checkpoints/step-0000003/training").exists()
        assert training_seconds(plan.folder, 4) > 0


def asked_of(pipeline: VideoPipeline, measure: MeasureSettings) -> tuple[torch.Tensor, list[tuple]]:
    """Losses, and what the model was called with for them: (u, noisy latents, label, grid) of each clip, by time."""
    calls: list[tuple] = []

    def note(model, inputs, cond) -> None:
        x, t = inputs
        for number, u in enumerate((t / 999).tolist()):
            calls.append((u, x[number].clone(), int(cond["labels"][number]), cond.get("grid")))

    hook = pipeline.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        losses = heldout_losses(pipeline, measure)
    finally:
        hook.remove()
    return losses, sorted(calls, key=lambda each: each[0])


def test_dense_and_sparse_are_asked_the_same_at_times_that_training_draws_equally_often(pipelines):
    measure = MeasureSettings(clips=4, times=4, batch=3)
    losses, asked = asked_of(pipelines["dense"], measure)
    others, asked_others = asked_of(pipelines["sparse"], measure)
    assert losses.shape == (4, 4) and bool((losses > 0).all()) and not torch.equal(losses, others)
    schedule = pipelines["sparse"].schedule
    for (u, x, label, grid), (other_u, other_x, other_label, other_grid) in zip(asked, asked_others, strict=True):
        assert u == other_u and label == other_label and torch.equal(x, other_x)  # of the same clips and noise
        assert grid is None and other_grid == schedule.grid(u)
    edges = torch.tensor(time_edges(pipelines["dense"].config, 4))
    u = torch.tensor([each[0] for each in asked])
    assert torch.bucketize(u, edges, right=True).bincount().tolist() == [0, 4, 4, 4, 4]
    assert edges.tolist() == pytest.approx([0, *(LogitNormalTimes().quantile(q) for q in (0.25, 0.5, 0.75)), 1])
    assert sum(each[2] for each in asked) == 8  # evenly over both classes


def test_losses_depend_on_seed_and_weights_and_not_on_the_batch(pipelines):
    measure = MeasureSettings(clips=4, times=2, batch=3)
    losses = heldout_losses(pipelines["dense"], measure)
    assert torch.equal(heldout_losses(pipelines["dense"], measure), losses)
    assert torch.allclose(heldout_losses(pipelines["dense"], replace(measure, batch=16)), losses, rtol=1e-5)
    for other in (replace(measure, seed=1), replace(measure, split="train")):
        assert not torch.equal(heldout_losses(pipelines["dense"], other), losses)
    fewer = heldout_losses(pipelines["dense"], replace(measure, clips=2))
    assert torch.allclose(fewer, losses[:2], rtol=1e-5)


def test_losses_that_are_not_finite_are_told_and_not_kept(trained):
    plan = trained["dense"]
    pipeline = VideoPipeline.from_pretrained(plan.folder, device="cpu")
    pipeline.model.final_layer.linear.bias.data[0] += math.nan
    plan = replace(plan, measure=replace(plan.measure, clips=2, times=2, seed=5))
    with pytest.raises(StudyError, match="are not finite .*went astray"):
        _losses(plan, pipeline)
    assert kept_losses(plan) is None


def test_real_clips_against_themselves_are_at_no_distance(pipelines, trained, data, tmp_path):
    config = pipelines["dense"].config
    measure = replace(trained["dense"].measure, clips=4, classifier_steps=40)
    same = open_reference(config, replace(measure, train_split="test"), 4, tmp_path / "same")
    other = open_reference(config, measure, 4, tmp_path / "other")
    assert same.distance == pytest.approx(0.0, abs=1e-4) and other.distance > 10 * same.distance
    assert same.accuracy == 1.0 and ClipClassifier.load(other.classifier).classes == other.classes == ("left", "right")
    assert open_reference(config, measure, 4, tmp_path / "other") == other  # kept
    protocol = study_protocol(config, measure, 4)
    assert (protocol.split, protocol.frames, protocol.real_count, protocol.fake_count) == ("test", 4, None, 4)


def test_data_without_classes_are_refused(pipelines, trained, tmp_path):
    config = pipelines["dense"].config
    bare = replace(config, record=replace(config.record, classes=[]))
    with pytest.raises(RuntimeError, match="0 classes: a study is of data with classes"):
        open_reference(bare, trained["dense"].measure, 4, tmp_path)


def test_a_budget_begins_what_will_end_and_what_never_would():
    assert Budget().admits(1e9) and Budget().left is None and not Budget().over
    hour = Budget(60)
    assert hour.admits(None) and hour.admits(60) and hour.admits(4000) and not Budget(0).admits(1)
    assert not hour.admits(hour.seconds) and Budget(0).over  # some of it has gone by already
