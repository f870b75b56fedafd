"""What a click on the page calls: clips of two ways from the same noise, counted; no widget and no browser is needed."""

import re
from dataclasses import replace

import pytest
import torch
from generation.prompted import PROMPTS, write_text_checkpoint
from generation.sampled import SPEC, write_checkpoint

from sparsevid.savings.tally import Tally
from sparsevid.ui.clicks import Clicks
from sparsevid.ui.comparison import MOST_CLIPS, Made, Shared, Side, choices, clip_cost, likeness, make
from sparsevid.ui.markup import message, shown
from sparsevid.ui.models import KEPT, Models

HOSTILE = "${7*7}{{7*7}}<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    write_checkpoint(folder / "sparse")
    write_checkpoint(folder / "flow", replace(SPEC, learn_sigma=False), objective="flow")
    write_checkpoint(folder / "plain", replace(SPEC, layout="4D", sparse_grid=None, num_classes=0))
    return Models([str(folder / name) for name in ("sparse", "flow", "plain")], device="cpu")


@pytest.fixture(scope="module")
def clicks(models) -> Clicks:
    return Clicks(models)


def test_a_click_makes_what_the_pipeline_makes(models):
    pipeline = models.open("sparse")
    made = make(pipeline, Side("sparse", steps=2, guidance=3.0), Shared(3, seed=5, classes=["jump", "walk"]))
    expected = pipeline(3, steps=2, guidance=3.0, seed=5, classes=["jump", "walk"], show_progress=False)
    assert torch.equal(made.clips, expected) and made.captions == ("jump", "walk", "jump") and made.seconds > 0


@pytest.mark.parametrize(
    "options", [{}, {"guidance": 2.0}, {"guidance": 2.0, "guidance_interval": (0.3, 1.0)}, {"schedule": "off"}]
)
def test_cost_is_what_a_tally_of_the_calls_says(options, models):
    pipeline, tally = models.open("sparse"), Tally()
    sampling = pipeline.sampling(steps=3, batch=2, **options)
    pipeline.denoise(range(2), sampling, tally=tally)
    macs, dense = clip_cost(pipeline, sampling)
    assert macs == pytest.approx(tally.macs / 2) and macs < dense * (1.0 if sampling.schedule == "paper" else 2.0)


def test_prompts_are_what_the_pipeline_makes_of_them_and_are_counted(tmp_path):
    pytest.importorskip("transformers")
    written = write_text_checkpoint(tmp_path)
    (pipeline,) = map(Models([str(written)], device="cpu").open, ["model"])
    shared, side = Shared(2, prompts=[PROMPTS[0], "", f" {PROMPTS[1]} "], negative="dull"), Side("model", steps=2, guidance=2.0)
    made, tally = make(pipeline, side, shared), Tally()
    options = {"steps": 2, "guidance": 2.0, "prompts": PROMPTS[:2], "negative": "dull"}
    assert torch.equal(made.clips, pipeline(2, show_progress=False, **options)) and made.captions == PROMPTS[:2]
    pipeline.denoise(range(2), pipeline.sampling(batch=2, **options), tally=tally)
    assert made.macs == pytest.approx(tally.macs / 2) and choices(pipeline).text
    plain = make(pipeline, replace(side, guidance=1.0), shared)  # without guidance nothing is compared with
    assert plain.sampling.negative is None and plain.macs < made.macs
    with pytest.raises(ValueError, match="no prompt is given"):
        make(pipeline, side, Shared(1))


def test_two_ways_differ_by_what_is_asked_for_alone(models):
    pipeline = models.open("sparse")
    one, same, less = (
        make(pipeline, Side("sparse", steps=3, savings=each), Shared(2)) for each in ([], [], ["static:every=3"])
    )
    assert likeness(one, same) == float("inf") and 0 < likeness(one, less) < 100
    assert less.macs < one.macs == same.macs and less.share < 1.0 == one.share
    page = shown([one, less])
    assert page.count("<video") == 4 and "static:every=3" in page and f"{less.macs / one.macs:.2f} of A&#x27;s" in page


def test_a_model_offers_what_it_can_do(models):
    sparse, flow, plain = (choices(models.open(name)) for name in ("sparse", "flow", "plain"))
    assert sparse.classes == ("walk", "run", "jump") and sparse.schedules == ("paper", "constant", "off") and sparse.guided
    assert "euler" in flow.samplers and "ddim" in sparse.samplers and not set(flow.samplers) & set(sparse.samplers)
    assert plain.classes == () and plain.schedules == ("off",) and not plain.guided and plain.usual.steps == 3


def test_models_are_opened_once_and_as_many_kept_as_the_page_shows(models):
    first = models.open("sparse")
    assert models.open("sparse") is first
    for name in models.names:
        models.open(name)
    assert len(models._opened) == KEPT
    with pytest.raises(ValueError, match="no model 'else'; on offer are sparse, flow, plain"):
        models.open("else")


def test_answers_come_side_by_side(clicks):
    told = []
    sides = [Side("sparse", steps=2), Side("flow", steps=2)]
    answers = list(clicks.generate(Shared(1), sides, lambda share, words: told.append((share, words))))
    assert [answer.count("<video") for answer in answers] == [1, 2]
    assert told[-1] == (1.0, "B: step 2") and "A: step 1" in [words for _, words in told]


@pytest.mark.parametrize(
    ("shared", "side", "reason"),
    [
        (Shared(1), Side("sparse", sampler="euler"), "accepted are ddpm, ddim, dpm++"),
        (Shared(1), Side("sparse", steps=0), "1 to 1000 steps"),
        (Shared(MOST_CLIPS + 1), Side("sparse"), "a click makes 1 to 8"),
        (Shared(1, classes=["wlak"]), Side("sparse"), "walk"),
        (Shared(1), Side("sparse", savings=["teacache"]), "sparsevid calibrate"),
        (Shared(1), Side("sparse", savings=[HOSTILE]), "no saving"),
        (Shared(1), Side(HOSTILE), "no model"),
    ],
)
def test_what_cannot_be_is_said_and_what_can(shared, side, reason, clicks):
    (answer,) = clicks.generate(shared, [side])
    assert re.search(reason, answer) and answer.startswith('<div class="sv-error"') and "<img" not in answer
    assert not re.search(r"[$`{}]", answer)


def test_what_is_there_stays_beside_what_went_wrong(clicks):
    *_, last = clicks.generate(Shared(1), [Side("sparse", steps=1), Side("plain", guidance=2.0)])
    assert last.count("<video") == 1 and "B: guidance needs a model of classes or of text" in last


def test_stop_ends_at_the_next_step_and_only_once(clicks):
    answers = clicks.generate(Shared(1), [Side("sparse", steps=3)], lambda share, words: share > 0.4 and clicks.stop())
    assert [*answers] == [message("A was stopped.", "note")]
    assert "<video" in next(clicks.generate(Shared(1), [Side("sparse", steps=1)]))


def test_names_are_text(models):
    pipeline = models.open("plain")
    made: Made = make(pipeline, Side("plain", steps=1), Shared(1))
    page = shown([replace(made, side=Side(HOSTILE), captions=(HOSTILE,))])
    assert "<img" not in page and page.count("&lt;img") == 2 and "${" not in page and "{{" not in page
