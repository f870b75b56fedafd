"""What attention does: planted attention, a writing with whole maps, converted models, batches, chunks, ranks; the command."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generation.sampled import command, start
from parity import disturbed
from search.small_models import DENSE, MEASURE, clips_of, pipeline_of
from study.tiny_study import CLASSES, write_data

from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.cli import run_tool
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.convert.dense_to_sparse import dense_to_sparse
from sparsevid.models.saving import Place
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import load_config, save_config
from sparsevid.search import SearchError
from sparsevid.search.attention import FIGURES, cells_of, describe_attention, measure_attention, summarise
from sparsevid.search.clips import check_latents
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.study.file import MeasureSettings
from sparsevid.study.heldout import clip_losses

SPARSE = replace(DENSE, layout="1P 1(1M2S1R1D)", sparse_grid=(2, 3, 2), residual_upsampling=True)
ROOT = Path(__file__).parents[2]


def measured(model: DiffusionTransformer, measure: MeasureSettings = MEASURE, **options):
    return measure_attention(pipeline_of(model), clips_of(model.spec), measure, **options)


def whole_map(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """softmax(q·kᵀ/√d), (B, G, h, M, K)."""
    return (torch.einsum("bgmhd,bgkhd->bghmk", q, k) / math.sqrt(q.shape[-1])).softmax(-1)


def near_by(grid: tuple[int, int], window: int) -> torch.Tensor:
    """(K, K): whether two tokens of a frame are near, counted pair by pair."""
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    return torch.tensor([[max(abs(a - c), abs(b - d)) <= window for c, d in places] for a, b in places])


@pytest.mark.parametrize("chunk", [1, 50, 1000, 1 << 22])
def test_chunks_give_what_whole_maps_give(chunk):
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 24, 2, 8), torch.randn(2, 3, 24, 2, 8)
    for place, grid, near in (
        (Place("attention", 0, "D", "space"), Grid(3, 6, 4), near_by((6, 4), 1)),
        (Place("attention", 1, "D", "time"), Grid(24, 1, 3), near_by((24, 1), 1)),
    ):
        weights = whole_map(q, k)
        found = describe_attention(q, k, cells_of(place, grid, None), 1, chunk)
        entropy = -(weights * weights.log()).sum(-1).mean((1, 2, 3)) / math.log(24)
        assert torch.allclose(found.entropy.float(), entropy, rtol=1e-5)
        assert torch.allclose(found.share.float(), (weights * near).sum(-1).mean((1, 2, 3)), rtol=1e-5)
        assert found.uniform == pytest.approx(near.float().mean().item())


def test_attention_on_one_key_has_no_entropy_and_is_as_near_as_this_key():
    eye = 100 * torch.eye(12)[None, None, :, None]  # (1, 1, 12, 1, 12): each query finds its own key
    cells = cells_of(Place("attention", 1, "D", "time"), Grid(12, 1, 1), None)
    found = describe_attention(eye, eye, cells, 0)
    assert found.entropy.item() == pytest.approx(0, abs=1e-6) and found.share.item() == pytest.approx(1)
    shares = [describe_attention(eye, eye.roll(3, dims=2), cells, window).share.item() for window in (2, 3)]
    assert shares == pytest.approx([0, 0.75])  # the last three find the first three, which are far
    one = describe_attention(eye[:, :, :1], eye[:, :, :1], (cells[0][:1], cells[1][:1]), 1)
    assert (one.entropy.item(), one.share.item(), one.uniform) == (1, 1, 1)


def test_a_layer_whose_queries_or_keys_are_nothing_is_uniform():
    model = disturbed(DENSE, size=0.5)
    with torch.no_grad():
        for index, part in ((2, 0), (3, 1)):  # the queries of a spatial layer, the keys of a temporal one
            qkv = model.blocks[index].attn.qkv
            qkv.weight.chunk(3)[part].zero_()
            qkv.bias.chunk(3)[part].zero_()
    found = measured(model)
    figures = found.figures
    for index in range(DENSE.depth):
        entropy, share, uniform, change, loss_change = (figures[name][:, :, index] for name in FIGURES)
        if index in (2, 3):
            assert torch.allclose(entropy, torch.ones_like(entropy), atol=1e-6) and torch.allclose(share, uniform, atol=1e-6)
            assert change.max() < 1e-9 and (loss_change / found.losses).abs().max() < 1e-5
        else:
            assert entropy.max() < 1 - 1e-4 and change.min() > 1e-7 and not torch.allclose(share, uniform, atol=1e-5)
    counts = [near_by((6, 4), 1).double().mean(), near_by((4, 1), 1).double().mean()] * 3
    assert torch.allclose(figures["uniform"][0, 0], torch.stack(counts))


def test_the_mean_in_place_of_attention_is_the_model_with_a_pooling_layer_there():
    model = disturbed(DENSE, size=0.5)
    pooled = replace(DENSE, layout="1P 5D")
    converted = DiffusionTransformer(pooled).eval()
    converted.load_state_dict(dense_to_sparse(model.state_dict(), DENSE, pooled)[0])
    losses = [clip_losses(pipeline_of(each), clips_of(DENSE), MEASURE) for each in (model, converted)]
    found = measured(model)
    assert torch.allclose(found.losses, losses[0], rtol=1e-5)
    assert torch.allclose(found.figures["loss_change"][:, :, 0], losses[1] - losses[0], atol=1e-5)
    asked, outputs = [], []
    hooks = [model.register_forward_pre_hook(lambda _, inputs, cond: asked.append((inputs, cond)), with_kwargs=True)]
    measure_attention(pipeline_of(model), clips_of(DENSE), replace(MEASURE, batch=6))
    hooks[0].remove()
    (x, t), labels = asked[0][0], asked[0][1]["labels"]
    with torch.no_grad():
        outputs = [each(x, t, labels) for each in (model, converted)]
    change = (outputs[1] - outputs[0]).square().flatten(1).sum(1) / outputs[0].square().flatten(1).sum(1)
    of_clips = found.figures["change"][:, :, 0].T.flatten()  # one forward had all: interval by interval
    assert torch.allclose(of_clips, change.double(), rtol=1e-3)


def test_figures_depend_neither_on_batches_nor_on_chunks():
    model = disturbed(SPARSE, size=0.5)
    found = measured(model)
    for others in (measured(model, replace(MEASURE, batch=1)), measured(model, chunk=40)):
        for name in FIGURES:
            size = found.losses.max().item() if name == "loss_change" else 1.0
            assert torch.allclose(others.figures[name], found.figures[name], rtol=1e-4, atol=1e-6 * size), name


def test_layers_between_sparse_and_dense_tokens_are_described_too_and_pooling_ones_are_not():
    found = measured(disturbed(SPARSE, size=0.5))
    assert [(each.index, each.kind, each.axis) for each in found.layers] == [
        (1, "M", "window"), (2, "S", "space"), (3, "S", "time"), (4, "R", "window"), (5, "D", "time"),
    ]  # fmt: skip
    uniform = near_by((3, 2), 1).double().mean()  # each cell of the sparse grid stands for as many dense tokens
    assert torch.allclose(found.figures["uniform"][0, 0, [0, 1, 3]], uniform)
    assert all(found.figures["change"][:, :, number].max() > 1e-10 for number in range(5))
    few, many = cells_of(found.layers[0], Grid(4, 6, 4), Grid(2, 3, 2))
    assert few.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert many.shape == (2 * 24, 2) and torch.equal(many[:24], many[24:]) and many[5].tolist() == [0, 0]
    assert many[6].tolist() == [0, 1] and many[23].tolist() == [2, 1]


def test_windows_whose_queries_or_keys_are_nothing_are_uniform():
    model = disturbed(SPARSE, size=0.5)
    with torch.no_grad():
        for part in (*model.blocks[1].attn.kv.parameters(), *model.blocks[4].attn.q.parameters()):
            part[: SPARSE.hidden_size].zero_()  # the keys of M, the queries of R
    found = measured(model)
    for number in (0, 3):
        entropy, share, uniform, change, _ = (found.figures[name][:, :, number] for name in FIGURES)
        assert torch.allclose(entropy, torch.ones_like(entropy), atol=1e-6) and torch.allclose(share, uniform, atol=1e-6)
        assert change.max() < 1e-12 < found.figures["change"][:, :, 1].min()


def test_image_models_have_spatial_layers_only():
    image = replace(DENSE, layout="2D", input_size=(1, 6, 4), num_classes=0, learn_sigma=True)
    model = disturbed(image, size=0.5)
    found = measure_attention(pipeline_of(model, "diffusion"), clips_of(image), MEASURE)
    assert [each.axis for each in found.layers] == ["space", "space"]
    assert all(values.isfinite().all() for values in found.figures.values())


def test_summaries_are_means_and_standard_errors_over_clips():
    found = measured(disturbed(DENSE))
    summary = summarise(found)
    values = found.figures["entropy"][:, :, 4]
    entropy = summary["layers"][4]["entropy"]
    assert entropy["mean"] == pytest.approx(values.mean().item())
    assert entropy["means"] == pytest.approx(values.mean(0).tolist())
    assert entropy["errors"] == pytest.approx((values.std(0) / math.sqrt(3)).tolist())
    assert entropy["error"] == pytest.approx(values.mean(1).std().item() / math.sqrt(3))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_what_cannot_be_measured_is_said():
    with pytest.raises(SearchError, match="'6P' has no layer with attention"):
        measured(DiffusionTransformer(replace(DENSE, layout="6P")))
    with pytest.raises(SearchError, match="at least 2"):
        measured(disturbed(DENSE), replace(MEASURE, clips=1))
    with pytest.raises(SearchError, match="latents of 4×6×4, and the model was trained on 4×6×6"):
        check_latents(replace(DENSE, input_size=(4, 6, 6)), clips_of(DENSE))
    with pytest.raises(SearchError, match="zeros, or what is not finite"):
        measured(DiffusionTransformer(DENSE).eval())  # its head is still zero


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of random weights, with clips that it could have been trained on beside it."""
    folder = tmp_path_factory.mktemp("analysed")
    write_data(folder)
    spec = ModelSpec("4D", 16, 2, (4, 8, 8), in_channels=8, patch_size=1, num_classes=2, learn_sigma=False)
    disturbed(spec, size=0.3).save_pretrained(folder / "run" / "ema")
    noise = torch.randint(0, 256, (4, 3, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    LinearAutoencoder.fit(noise, patch=4, channels=8).save(folder / "run" / "autoencoder")
    data = [f"data.card={folder / 'moving.yaml'}", f"data.root={folder / 'videos'}"]
    config = load_config(None, ["objective.kind=flow", *data])
    config.record.classes, config.record.fingerprint = list(CLASSES), "of other data"
    save_config(config, folder / "run" / "config.yaml")
    return folder / "run"


def line_of(checkpoint: Path, out: Path) -> list[str]:
    return [str(checkpoint), "--clips", "4", "--times", "2", "--batch", "3", "--device", "cpu", "--out", str(out)]


def test_the_command_writes_numbers_and_pictures_and_does_nothing_twice(checkpoint, tmp_path, capsys, caplog):
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra `demo`)")
    line = line_of(checkpoint, tmp_path)
    assert run_tool("analyse", line) == 0
    printed = capsys.readouterr()
    for word in ("layer", "entropy", "noisiest", "space", "time", "change of loss", "4 clips of test, 2 times; window 1"):
        assert word in printed.out
    assert "other data than the model was trained on" in caplog.text and "is there already" not in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["analysis.json", "analysis.png", "analysis.svg"]
    first = (tmp_path / "analysis.json").read_bytes()
    found = json.loads(first)
    assert found["of"]["model"] == VideoPipeline.from_pretrained(checkpoint, device="cpu").fingerprint()
    assert len(found["layers"]) == 4 and found["edges"][0] == 0 and len(found["edges"]) == 3
    assert run_tool("analyse", line) == 0
    assert capsys.readouterr().out == printed.out and "is there already" in caplog.text
    assert (tmp_path / "analysis.json").read_bytes() == first
    assert run_tool("analyse", [*line, "--window", "2"]) == 2
    assert "is of window 1; --again computes it anew" in capsys.readouterr().err
    assert run_tool("analyse", [*line, "--window", "2", "--again", "--plot", "off"]) == 0
    assert json.loads((tmp_path / "analysis.json").read_bytes())["of"]["window"] == 2


def test_what_the_command_lacks_is_said_first(checkpoint, tmp_path, capsys):
    def said(*options: str, source: Path = checkpoint) -> str:
        assert run_tool("analyse", [*line_of(source, tmp_path / "out"), "--plot", "off", *options]) == 2
        return capsys.readouterr().err

    autoencoder = ["--autoencoder", f"linear:{checkpoint / 'autoencoder'}"]
    assert "give their card, --card CARD" in said(*autoencoder, source=checkpoint / "ema")
    assert "no data folder" in said("--root", str(tmp_path / "nowhere"))
    assert "no video is in split 'val'; splits: test (4 videos), train (6 videos)" in said("--split", "val")
    assert "--clips is at least 2, got 1" in said("--clips", "1")
    bare = tmp_path / "bare.yaml"
    card = (checkpoint.parent / "moving.yaml").read_text(encoding="utf-8")
    bare.write_text(card.replace("label_rule: folder\nclasses: [left, right]", "label_rule: none"), encoding="utf-8")
    words = said("--card", str(bare), "--root", str(checkpoint.parent / "videos"))
    assert "the model has the classes left, right, and" in words and "has none" in words


@pytest.mark.slow
def test_two_processes_give_what_one_gives(checkpoint, tmp_path):
    for processes in (1, 2):
        line = [*line_of(checkpoint, tmp_path / str(processes)), "--clips", "3", "--plot", "off"]
        process = start(command(*line, processes=processes, script=ROOT / "tools" / "analyse.py"))
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
    one, two = (json.loads((tmp_path / str(count) / "analysis.json").read_bytes()) for count in (1, 2))
    assert one["of"] == two["of"]
    for mine, other in zip(one["layers"], two["layers"], strict=True):
        for name in FIGURES:
            assert mine[name]["means"] == pytest.approx(other[name]["means"], rel=1e-4, abs=1e-7)
            assert mine[name]["error"] == pytest.approx(other[name]["error"], rel=1e-3, abs=1e-7)
