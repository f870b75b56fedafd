"""`float32` has one meaning for convolutions and products, whichever of PyTorch's settings is asked."""

from types import SimpleNamespace

import pytest
import torch

from sparsevid.system.precision import exact_float32, set_float32


@pytest.fixture(autouse=True)
def exact_again():
    yield
    set_float32()


def told() -> dict[str, object]:
    """What each of PyTorch's settings says of TF32."""
    found = {
        "convolutions": torch.backends.cudnn.allow_tf32,
        "products": torch.backends.cuda.matmul.allow_tf32,
        "precision of products": torch.get_float32_matmul_precision() != "highest",
    }
    if hasattr(torch.backends.cudnn, "conv"):
        found["convolution"] = torch.backends.cudnn.conv.fp32_precision == "tf32"
        found["product"] = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return found


@pytest.mark.parametrize("tf32", [True, False])
def test_all_settings_agree(tf32):
    set_float32(tf32)
    assert set(told().values()) == {tf32}
    set_float32(not tf32)
    assert set(told().values()) == {not tf32}
    set_float32()
    assert set(told().values()) == {False}


@pytest.mark.parametrize("tf32", [True, False])
def test_exact_inside_and_as_before_outside(tf32):
    set_float32(tf32)
    before = told()
    with pytest.raises(KeyError), exact_float32():
        if hasattr(torch.backends.cudnn, "conv"):
            assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
        else:
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        raise KeyError
    assert told() == before


@pytest.mark.parametrize("tf32", [True, False])
def test_a_pytorch_of_before_2_9_has_one_flag_a_library(tf32):
    backends = SimpleNamespace(
        cudnn=SimpleNamespace(allow_tf32=True), cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False))
    )
    set_float32(tf32, backends)
    assert (vars(backends.cudnn), vars(backends.cuda.matmul)) == ({"allow_tf32": tf32},) * 2


def test_products_on_a_cpu_stay_exact():
    a, b = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    exact = a @ b
    set_float32(tf32=True)
    assert torch.equal(a @ b, exact)
