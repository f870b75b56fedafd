"""What a study's file says: typed, strict, rows on rows, of other studies and at other scales; and what it costs."""

from pathlib import Path

import pytest

from sparsevid.cli import run_tool
from sparsevid.runs.config import ConfigError
from sparsevid.sparsity.cost import forward_macs
from sparsevid.study import StudyError
from sparsevid.study.file import dotted, read_study
from sparsevid.study.plan import Study, changed
from sparsevid.study.run import chosen_plans

ROOT = Path(__file__).parents[2]
OWN = sorted((ROOT / "configs" / "study").glob("*.yaml"))
SLOW = ("ablation", "savings", "scale")  # the others hold what these do
SPARSE = {"model": {"layout": "1P 1(1M1S1R1D) 1D"}}


def study(path: Path, **options) -> Study:
    return Study(path, path.parent / "runs", **options)


def refused(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError) as error:
        read_study(path)
    return str(error.value)


def test_files_that_cannot_be_used_say_why(tmp_path):
    path, head = tmp_path / "s.yaml", "study: s\nbase: b.yaml\n"
    assert "rows is not given" in refused(path, head)
    assert "did you mean 'seeds'" in refused(path, f"{head}seds: [1]\nrows: {{a: {{}}}}\n")
    assert "rows.a: unknown key 'strat'; did you mean 'start'" in refused(path, f"{head}rows: {{a: {{strat: b}}}}\n")
    assert "did you mean 'sample.steps'" in refused(path, f"{head}sample: {{step: 1}}\nrows: {{a: {{}}}}\n")
    assert "rows.a is a section" in refused(path, f"{head}rows: {{a: 3}}\n")
    assert "seeds" in refused(path, f"{head}seeds: [x]\nrows: {{a: {{}}}}\n")
    assert "names folders" in refused(path, f"{head}rows: {{../a: {{}}}}\n")
    assert "not valid YAML" in refused(path, "a: [")
    with pytest.raises(StudyError, match="no study"):
        read_study(tmp_path / "none.yaml")


def test_rows_that_cannot_be_are_refused(study_file):
    for rows, reason in (
        ({"a": {"start": "b"}}, "no row 'b'"),
        ({"dense": {}, "a": {"start": "densee"}}, "did you mean 'dense'"),
        ({"a": {"start": "b"}, "b": {"teacher": "a"}}, "rows need each other: a → b → a"),
        ({"a": {"like": "b"}, "b": {"like": "a"}}, "like itself"),
        ({"a": {}, "b": {"of": "a", "start": "a"}}, "nothing is trained|trains nothing"),
        ({"a": {}, "b": {"steps_of": "a", "macs_of": "a"}}, "one of them"),
        ({"a": {}, "b": {"start": "a", "steps_of": "a"}}, "leaves no step"),
        ({"a": {"sample": {"stepps": 3}}}, "did you mean 'steps'"),
        ({"a": {"start": "elsewhere/x"}}, "no study .*elsewhere.yaml"),
    ):
        with pytest.raises(StudyError, match=reason):
            chosen_plans(study(study_file(rows=rows)))
    with pytest.raises(ConfigError, match="did you mean 'train.steps'"):
        chosen_plans(study(study_file(rows={"a": {"overrides": {"train.step": 3}}})))
    with pytest.raises(StudyError, match="no row 'x'"):
        chosen_plans(study(study_file(rows={"a": {}})), ["x"])


def test_overrides_are_read_as_a_command_line_would():
    values = {
        "model.layout": "1P 1D",
        "train": {"lr": "1e-3", "betas": ["0.9", "0.99"]},
        "a": [["0.5", ["4", "3"]], "x: y", "owls, 🦉", ""],
        "b": None,
    }
    assert dotted(values) == [
        "model.layout=1P 1D", "train.lr=1e-3", "train.betas=[0.9, 0.99]", 'a=[[0.5, [4, 3]], "x: y", "owls, 🦉", ""]', "b=null",
    ]  # fmt: skip


def test_rows_lie_over_rows_and_runs_over_runs(study_file):
    rows = {
        "pretrain": {"overrides": {"train.steps": 9}},
        "a": {
            "start": "pretrain",
            "overrides": {"train": {"lr": 0.5, "betas": [0.8, 0.9]}},
            "sample": {"steps": 7},
            "seeds": [4],
        },
        "b": {
            "like": "a",
            "seeds": [1, 2],
            "overrides": {"train.lr": 0.25, **SPARSE, "schedule": {"kind": "table", "table": [[1.0, [2, 2, 2]]]}},
        },
        "c": {"like": "b", "start": "none", "sample": {"guidance": 1.5}},
        "d": {"like": "a"},
    }
    found = study(
        study_file(rows=rows, overrides={"train.steps": 5, "train.lr": 1.0}, seeds=[1, 2]), overrides=["data.flip=true"]
    )
    plans = {(plan.row.name, plan.seed): plan for plan in chosen_plans(found)}
    by_seed = [[("pretrain", seed), ("b", seed), ("c", seed)] for seed in (1, 2)]
    assert list(plans) == [*by_seed[0], *by_seed[1], ("a", 4), ("d", 4)]
    a, b, c = plans["a", 4], plans["b", 1], plans["c", 1]
    assert (a.config.train.steps, a.config.train.lr, a.config.train.betas) == (5, 0.5, [0.8, 0.9])
    assert (b.config.train.lr, b.config.train.betas, b.config.model.layout) == (0.25, [0.8, 0.9], SPARSE["model"]["layout"])
    assert b.run.schedule.stages[0].grid == (2, 2, 2) and b.config.data.flip
    assert (b.start.config.seed, b.config.seed, c.config.seed) == (1, 1001, 1)  # draws of a fine-tune are its own
    assert b.start is plans["pretrain", 1] and c.start is None and b.config.train.init_from == str(b.start.folder)
    assert (c.sample.steps, c.sample.guidance, b.sample.guidance) == (7, 1.5, 2.0)
    assert b.config.folder == found.runs / "b" / "seed-1" and b.total_steps == 14 and c.total_steps == 5


def test_the_control_is_that_of_the_row_that_a_row_is_like(study_file):
    rows = {"dense": {}, "own": {"control": "none"}, "a": {"control": "own"}, "b": {"like": "a"}, "c": {"like": "own"}}
    found = study(study_file(rows=rows, control="dense"))
    assert {name: found.control(name) for name in rows} == {"dense": None, "own": None, "a": "own", "b": "own", "c": None}


@pytest.mark.parametrize("name", ["paper", "ablation", "savings", "scale"])
def test_rows_are_measured_like_their_control(name):
    """On the same clips in the same latents, or a difference would mean nothing."""
    found = study(ROOT / "configs" / "study" / f"{name}.yaml")
    for row in (name for name in found.file.rows if found.row(name).measured):
        own, other = found.plan(row, 0), found.control(row) and found.plan(found.control(row), 0)
        if other:
            pairs = ((each.config.data, each.config.autoencoder, each.measure) for each in (own, other))
            assert next(pairs) == next(pairs)


def test_what_is_told_apart(study_file):
    def of(rows, **keys):
        return study(study_file(rows={"p": {}, **rows}, **keys)).plan(list(rows)[-1], 0)

    plain = of({"a": {"start": "p"}})
    assert of({"b": {"start": "p", "note": "other words"}}).settings == plain.settings
    assert of({"a": {"start": "p", "overrides": {"data.workers": 0, "train.checkpoint_every": 7}}}).settings == plain.settings
    assert of({"s": {"of": "p"}}).settings == of({"p": {}}).settings
    for other in ({"overrides": {"train.lr": 0.5}}, {"teacher": "p"}, {"start": "none"},
                  {"start": "none", "overrides": {"train.init_from": "elsewhere"}}):  # fmt: skip
        found = of({"a": {"start": "p", **other}})
        assert found.trained != plain.trained and found.settings != plain.settings
    sampled = of({"a": {"start": "p", "sample": {"steps": 9}}})
    assert sampled.trained == plain.trained and sampled.settings != plain.settings
    assert of({"a": {"start": "p"}}, measure={"clips": 2}).settings != plain.settings
    # What the study says itself does not count of a run, what it leaves to the run does.
    for key, counts in (("sample.steps", False), ("sample.guidance_channels", True)):
        assert (of({"a": {"start": "p", "overrides": {key: 3}}}).settings != plain.settings) == counts, key
    before = of({"p": {"overrides": {"train.lr": 0.5}}, "a": {"start": "p"}})
    assert before.trained != plain.trained  # what it starts from is another
    assert changed({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 0, "d": 0}}, ["b.d"]) == {"b.c": 2}


def test_cost_is_counted_over_stages_and_what_came_before(study_file):
    rows = {
        "p": {},
        "dense": {"start": "p"},
        "sparse": {"start": "p", "overrides": SPARSE},
        "taught": {"like": "sparse", "teacher": "p"},
        "steps": {"overrides": SPARSE, "steps_of": "dense"},
        "macs": {"overrides": SPARSE, "macs_of": "dense"},
    }
    found = study(study_file(rows=rows))
    p, dense, sparse, taught, steps, macs = (found.plan(name, 0) for name in rows)
    clips, spec = dense.config.train.global_batch, dense.run.spec
    assert dense.step_macs == 3 * clips * forward_macs(spec) and dense.total_macs == p.training_macs + dense.training_macs
    assert taught.step_macs == pytest.approx(sparse.step_macs + clips * forward_macs(sparse.run.spec.dense()))
    grids = [forward_macs(sparse.run.spec, grid=stage.grid) for stage in sparse.run.schedule.stages]
    assert min(grids) < sparse.step_macs / (3 * clips) < max(grids) < forward_macs(spec)
    assert steps.total_steps == dense.total_steps == 6 and steps.total_macs < dense.total_macs
    assert macs.total_macs == pytest.approx(dense.total_macs, abs=macs.step_macs / 2) and macs.total_steps > 6
    samples = {
        "never": {"guidance": 1.0},
        "always": {},
        "late": {"guidance_interval": [0.0, 0.6]},
    }  # of two steps, at 1 and 0.5
    guided = study(study_file(rows={name: {"sample": sample} for name, sample in samples.items()}))
    assert [guided.plan(name, 0).sampled_macs for name in samples] == [calls * forward_macs(spec) for calls in (2, 4, 3)]


def test_a_scale_changes_data_and_model_and_has_results_of_its_own(study_file):
    scales = {
        "large": {
            "overrides": {"model.hidden_size": 64},
            "rows": {"a": {"train.steps": 11}},
            "sample": {"clips": 9},
            "measure": {"clips": 2},
            "seeds": [5],
        }
    }
    path = study_file(rows={"a": {"overrides": {"train.steps": 4}}, "b": {}}, scales=scales)
    plan, small = study(path, scale="large").plan("a", 5), study(path).plan("a", 0)
    assert (plan.config.model.hidden_size, plan.config.train.steps, plan.sample.clips, plan.measure.clips) == (64, 11, 9, 2)
    assert plan.sample.steps == small.sample.steps and plan.row.study.name == "tiny-large" and plan.row.seeds == (5,)
    with pytest.raises(StudyError, match="no scale 'lrge'; did you mean 'large'"):
        study(path, scale="lrge")
    other = study(study_file("more", rows={"x": {"of": "tiny/a"}, "y": {"of": "none/a"}}, scales={"wide": {}}), scale="wide")
    with pytest.raises(StudyError, match=r"tiny\.yaml.*no scale 'wide'"):  # small figures are none of the large study
        other.plan("x", 0)


@pytest.mark.parametrize("path", [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in OWN],
                         ids=[path.stem for path in OWN])  # fmt: skip
def test_each_study_of_the_repository_can_be_planned(path):
    for scale in (None, *read_study(path).scales):
        found = study(path, scale=scale)
        plans = chosen_plans(found, seeds=found.seeds[:1])
        assert found.file.study == path.stem and {plan.row.name for plan in plans} == set(found.file.rows)
        for plan in plans:
            control = found.control(plan.row.name)
            assert control is None or found.row(control).measured
            assert plan.sample.sampler == "euler" and plan.sample.guidance == found.sample.guidance
            assert plan.source.config.data.card == "atari" and (plan.row.settings.note or not plan.row.measured)
    paper = study(path.with_name("paper.yaml"))
    for key in ("sample", "measure"):
        assert getattr(study(path), key) == getattr(paper, key)  # else their figures could not be compared


def test_rows_of_the_paper_begin_with_one_dense_model_and_train_alike():
    found = study(ROOT / "configs" / "study" / "paper.yaml")
    plans = {name: found.plan(name, 0) for name in found.file.rows}
    tuned = ("dense", "sparse", "residual", "teacher_output", "teacher_features")
    assert {plans[name].start for name in tuned} == {plans["pretrain"]} and len(
        {plans[name].config.train.steps for name in tuned}
    ) == 1
    assert plans["sparse"].run.spec.is_sparse and not plans["sparse"].run.spec.residual_upsampling
    assert plans["residual"].run.spec.residual_upsampling and plans["teacher_features"].config.distill.features > 0
    assert plans["scratch"].start is None and plans["scratch"].total_steps == plans["dense"].total_steps
    assert plans["scratch_macs"].total_macs == pytest.approx(plans["dense"].total_macs, rel=0.01)
    assert {plans[f"sparse_{steps}"].sample.steps for steps in (2, 5, 10)} == {2, 5, 10} and found.seeds == (0, 1, 2)


def test_fixed_tokens_cost_what_the_schedule_does():
    found = study(ROOT / "configs" / "study" / "ablation.yaml")
    fixed, scheduled = found.plan("fixed", 0), found.plan("sparse", 0)
    assert fixed.sampled_macs == pytest.approx(scheduled.sampled_macs, rel=0.01)
    assert {found.plan(name, 0).run.spec.depth for name in found.file.rows} == {12}  # layer i from layer i


def test_a_list_says_how_far_rows_are(study_file, capsys):
    path = study_file()
    given = [str(path), "--list", "--out", str(path.parent / "runs"), "--results", str(path.parent / "r.jsonl")]
    assert run_tool("study", given) == 0
    printed = capsys.readouterr().out
    assert "open (needs" in printed and "pretrain" in printed and "not known" in printed
    assert not (path.parent / "runs").exists() and not (path.parent / "r.jsonl").exists()
    assert run_tool("study", [*given[:-1], str(path.parent / "r.jsonl"), "--rows", "sparze"]) == 2
    assert "did you mean 'sparse'" in capsys.readouterr().err
    assert run_tool("study", [str(path), "--budget", "-1"]) == 2
