"""What each choice loses: as a model that was converted by hand, whatever the batches and rounds; kept, and gone on with."""

from dataclasses import replace

import pytest
import torch
from parity import disturbed
from search.small_models import DENSE, TEXT, clips_of, pipeline_of

from sparsevid.models.convert.dense_to_sparse import dense_to_sparse
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.search import SearchError
from sparsevid.search import measure as module_under_test
from sparsevid.search.attention import measure_attention
from sparsevid.search.measure import Variants, error_of_sum, loss_tables, measure_rounds, name_of
from sparsevid.search.tables import possible_modules
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.schedule import constant_schedule
from sparsevid.study.file import MeasureSettings
from sparsevid.study.heldout import clip_losses

GRIDS = (Grid(2, 2, 2), Grid(2, 3, 2))
MEASURE = MeasureSettings(clips=4, times=2, batch=3)
MODULES = possible_modules(DENSE.depth)
CHOICES = [*range(DENSE.depth), *((each, g) for each in MODULES for g in range(len(GRIDS)))]


@pytest.fixture(scope="module")
def pipeline():
    return pipeline_of(disturbed(DENSE))


def measured(pipeline, folder, rounds=2, measure=MEASURE, choices=CHOICES, **options):
    return measure_rounds(pipeline, clips_of(DENSE, measure.clips), measure, choices, GRIDS, folder, rounds=rounds, **options)


@pytest.fixture(scope="module")
def losses(pipeline, tmp_path_factory):
    return measured(pipeline, tmp_path_factory.mktemp("rounds"))


def test_choices_lose_what_converted_models_lose(pipeline, losses):
    weights, clips = pipeline.model.state_dict(), clips_of(DENSE, 4)
    assert torch.allclose(losses["dense"], clip_losses(pipeline, clips, MEASURE), rtol=1e-5)
    for layout, choice in (("1P 5D", 0), ("1M 2S 1R 2D", ((0, 5), 1)), ("2D 1M 1R 2D", ((2, 3), 0))):
        grid = None if isinstance(choice, int) else GRIDS[choice[1]]
        spec = replace(DENSE, layout=layout, sparse_grid=grid, residual_upsampling=True)
        model = DiffusionTransformer(spec).eval()
        model.load_state_dict(dense_to_sparse(weights, DENSE, spec)[0])
        own = clip_losses(pipeline, clips, MEASURE, model=model, schedule=grid and constant_schedule(grid))
        found = losses[name_of(choice, GRIDS)]
        assert torch.allclose(found, own, rtol=1e-5) and not torch.allclose(found, losses["dense"], rtol=1e-3)


def test_a_model_of_text_is_asked_with_its_captions(tmp_path):
    pipeline, clips = pipeline_of(disturbed(TEXT)), clips_of(TEXT, 4)
    choice = ((0, 5), 1)
    found = measure_rounds(pipeline, clips, MEASURE, [0, choice], GRIDS, tmp_path, rounds=1)
    spec = replace(TEXT, layout="1M 2S 1R 2D", sparse_grid=GRIDS[1], residual_upsampling=True)
    model = DiffusionTransformer(spec).eval()
    model.load_state_dict(dense_to_sparse(pipeline.model.state_dict(), TEXT, spec)[0])
    own = clip_losses(pipeline, clips, MEASURE, model=model, schedule=constant_schedule(GRIDS[1]))
    assert torch.allclose(found[name_of(choice, GRIDS)], own, rtol=1e-5)
    silent = [clip._replace(text=clip.text + 1) for clip in clips]
    assert not torch.allclose(clip_losses(pipeline, silent, MEASURE), found["dense"], rtol=1e-3)
    attention = measure_attention(pipeline, clips, MEASURE)
    assert torch.allclose(attention.losses, found["dense"].to(attention.losses), rtol=1e-5)
    with pytest.raises(ValueError, match="the model is of text, and its data have no captions"):
        clip_losses(pipeline, clips_of(DENSE, 4), MEASURE)


def test_losses_depend_neither_on_rounds_nor_on_batches(pipeline, losses, tmp_path):
    others = measured(pipeline, tmp_path, rounds=1, measure=replace(MEASURE, batch=8))
    assert list(others) == list(losses)
    for name, values in losses.items():
        assert torch.allclose(values, others[name], rtol=1e-5), name


def test_choices_that_cannot_win_are_left_and_rounds_that_are_there_are_kept(pipeline, losses, tmp_path, monkeypatch):
    gone = {1, ((0, 4), 0)}
    found = measured(pipeline, tmp_path, lost=lambda losses, asked: gone)
    for choice in CHOICES:
        name = name_of(choice, GRIDS)
        assert torch.equal(found[name][:2], losses[name][:2])
        assert found[name][2:].isnan().all() if choice in gone else torch.equal(found[name][2:], losses[name][2:])
    tables = loss_tables(found, DENSE.depth, GRIDS, MODULES, [0.5, 0.5])
    first = (losses["P1"] - losses["dense"])[:2]
    assert tables.pooling[1] == pytest.approx(first.mean(0).numpy())
    assert tables.errors.pooling[1] == pytest.approx((first.std(0) / 2**0.5).numpy())
    whole = losses[name_of(((2, 3), 1), GRIDS)] - losses["dense"]
    assert tables.modules[2, 3][1] == pytest.approx(whole.mean(0).numpy())
    (tmp_path / "round-1.safetensors").unlink()  # a kill in the second round
    asked = []
    original = module_under_test._measure
    monkeypatch.setattr(module_under_test, "_measure", lambda *given: asked.append(given[-1]) or original(*given))
    again = measured(pipeline, tmp_path, lost=lambda losses, asked: gone)
    assert asked == ["round 2 of 2"]
    assert all(torch.allclose(found[name], again[name], equal_nan=True, rtol=0, atol=0) for name in found)


def test_variants_share_all_that_stays(pipeline):
    variants = Variants(pipeline.model)
    one, other = variants.module((2, 4), GRIDS[0]), variants.module((0, 3), GRIDS[0])
    assert one.spec.layout == "2D 1M 1S 1R 1D" and one.spec.residual_upsampling
    shared = [
        one.blocks[index].mlp.fc1.weight.data_ptr() == other.blocks[index].mlp.fc1.weight.data_ptr() for index in range(6)
    ]
    assert all(shared)


def test_losses_that_are_not_finite_are_refused(tmp_path):
    broken = pipeline_of(disturbed(DENSE))
    broken.model.blocks[2].mlp.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(SearchError, match="the loss of dense is not finite"):
        measured(broken, tmp_path)


def test_the_error_of_a_sum_is_that_of_sums_clip_by_clip():
    generator = torch.Generator().manual_seed(0)
    losses = {name: torch.randn(6, 2, generator=generator, dtype=torch.float64) for name in ("dense", "a", "b")}
    by_clip = 0.25 * (losses["a"] - losses["dense"])[:, 0] + 0.75 * (losses["a"] + losses["b"] - 2 * losses["dense"])[:, 1]
    assert error_of_sum(losses, [["a"], ["a", "b"]], [0.25, 0.75]) == pytest.approx(float(by_clip.std() / 6**0.5))
    assert error_of_sum(losses, [[], []], [0.5, 0.5]) == 0
    losses["b"][4:] = torch.nan  # left after four clips
    assert error_of_sum(losses, [["a"], ["a", "b"]], [0.25, 0.75]) == pytest.approx(float(by_clip[:4].std() / 2))
