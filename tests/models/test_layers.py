"""Identities of the five layers, each on random weights."""

import pytest
import torch
from parity import randomise

from sparsevid.models.attention import CrossAttention, SelfAttention
from sparsevid.models.blocks import AttentionLayer, MergeLayer, PoolLayer, RecoverLayer, layer_norm, modulate
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity import layout
from sparsevid.sparsity.cost import layer_macs
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.sparsity.tokens import pool, upsample, windows

DENSE, SPARSE = Grid(4, 4, 6), Grid(2, 3, 2)
SPEC = ModelSpec("1P 2(1M2S1R1D) 1D", 24, 2, (4, 8, 12), sparse_grid=SPARSE)


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, DENSE.t, DENSE.h * DENSE.w, 24, generator=generator)
    return x, pool(x, DENSE, SPARSE), torch.randn(2, 24, generator=generator)


@pytest.mark.parametrize("temporal", [False, True])
def test_pooling_on_the_mean_equals_the_naive_form(tokens, temporal):
    x, _, c = tokens
    layer = randomise(PoolLayer(SPEC, temporal))
    shift, scale, gate, *feed_forward = layer.modulation(c)
    y = modulate(layer_norm(x), shift, scale)
    if temporal:
        y = y.transpose(1, 2)
    weights = torch.full((y.shape[2], y.shape[2]), 1.0 / y.shape[2])  # the public code's matrix of equal weights
    attended = layer.attn.proj(weights @ layer.attn.v(y))
    attended = attended.transpose(1, 2) if temporal else attended
    naive = layer.feed_forward(x + gate * attended, *feed_forward)
    torch.testing.assert_close(layer(x, c), naive, atol=1e-5, rtol=1e-5)


def test_w1_before_upsampling_equals_w1_after(tokens):
    x, s, _ = tokens
    layer = randomise(RecoverLayer(SPEC, "sdpa"))
    up = upsample(s, SPARSE, DENSE).repeat_interleave(DENSE.t // SPARSE.t, dim=1)
    naive = layer.merged_layer1(up) + layer.merged_layer2(x)
    torch.testing.assert_close(layer.merge(s, x, SPARSE, DENSE), naive, atol=1e-5, rtol=1e-5)


def test_initial_recovery_leaves_the_dense_stream_unchanged(tokens):
    x, s, _ = tokens
    model = DiffusionTransformer(SPEC)
    layer = model.blocks[SPEC.parsed_layout.kinds.index("R")]
    assert torch.equal(layer.merge(s, x, SPARSE, DENSE), x)
    # and adaLN-Zero closes attention and MLP, so that the next layer receives x itself
    assert torch.equal(layer(s, x, torch.randn(2, 24), None, SPARSE, DENSE), x)


def test_windows_do_not_see_each_other(tokens):
    x, s, c = tokens
    merge, recover = randomise(MergeLayer(SPEC, "sdpa")), randomise(RecoverLayer(SPEC, "sdpa"))
    changed_x, changed_s = x.clone(), s.clone()
    changed_x[:, 2:] += 1.0  # the dense frames of the second window
    changed_s[:, 1:] += 1.0  # the sparse frame of the second window
    assert torch.equal(merge(s, x, c)[:, 0], merge(s, changed_x, c)[:, 0])
    before, after = recover(s, x, c, None, SPARSE, DENSE), recover(changed_s, x, c, None, SPARSE, DENSE)
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2:], after[:, 2:])


def test_keys_of_sparse_tokens_once_a_window_equal_those_for_each_frame(tokens):
    x, s, _ = tokens
    attention = randomise(CrossAttention(24, 2, "sdpa"))
    naive = attention(x, s.repeat_interleave(DENSE.t // SPARSE.t, dim=1))
    torch.testing.assert_close(attention(windows(x, SPARSE.t), s).view_as(x), naive, atol=1e-5, rtol=1e-5)


def test_temporal_attention_by_strides_equals_attention_of_transposed_tokens(tokens):
    x, _, _ = tokens
    by_strides = randomise(SelfAttention(24, 2, True, "sdpa"))
    plain = SelfAttention(24, 2, False, "sdpa").eval()
    plain.load_state_dict(by_strides.state_dict())
    naive = plain(x.transpose(1, 2).contiguous()).transpose(1, 2)
    torch.testing.assert_close(by_strides(x), naive, atol=1e-5, rtol=1e-5)


def test_temporal_attention_passes_views_to_the_kernel(tokens):
    """Whatever the batch, q, k and v reach the attention function as views of the projections: nothing is copied."""
    x, _, _ = tokens
    attention, seen = randomise(SelfAttention(24, 2, True, "sdpa")), []
    projections = []
    attention.qkv.register_forward_hook(lambda module, args, out: projections.extend(out))
    attend = attention.attend
    attention.attend = lambda q, k, v: seen.extend((q, k, v)) or attend(q, k, v)
    attention(x)
    assert [each.data_ptr() for each in seen] == [each.data_ptr() for each in projections]


@pytest.mark.parametrize("temporal", [False, True])
def test_attention_axes(tokens, temporal):
    """A spatial layer mixes tokens of one frame, a temporal one tokens of one position."""
    x, _, c = tokens
    layer = randomise(AttentionLayer(SPEC, temporal, "sdpa"))
    changed = x.clone()
    changed[:, 1, 5] += torch.linspace(-1, 1, 24)
    moved = (layer(changed, c) - layer(x, c)).abs().amax(dim=(0, 3)) > 0
    expected = torch.zeros_like(moved)
    if temporal:
        expected[:, 5] = True
    else:
        expected[1] = True
    assert torch.equal(moved, expected)


def test_a_kind_that_layouts_alone_know_is_neither_built_nor_run_nor_counted(monkeypatch):
    """The first step towards a new kind: what follows is named, and the layer is not taken for one of another kind."""
    monkeypatch.setattr(layout, "KINDS", f"{layout.KINDS}X")
    spec = ModelSpec("1D 1X", 24, 2, (4, 8, 12))
    model = DiffusionTransformer(spec.dense())
    model.kinds = spec.parsed_layout.kinds
    for step in (
        lambda: DiffusionTransformer(spec),
        lambda: model(torch.zeros(1, 4, 4, 8, 12), torch.tensor([3])),
        lambda: layer_macs(spec, 1, DENSE, None),
    ):
        with pytest.raises(NotImplementedError, match="layers of kind 'X'"):
            step()
