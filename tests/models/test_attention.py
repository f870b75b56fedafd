"""Which kernel attends, what it says where it cannot, and how much one call is given."""

from functools import partial

import pytest
import torch
from fake_gpu import fake_gpu
from parity import relative_error
from torch.overrides import TorchFunctionMode

from sparsevid.models import attention
from sparsevid.models.attention import BACKENDS, KERNELS, BackendError, allowing, attend_math, choose_backend, in_parts
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.spec import ModelSpec

ATTENTION = torch.nn.functional.scaled_dot_product_attention


class Calls(TorchFunctionMode):
    """Notes the shapes that PyTorch's attention is called with, (B', h, M, d), and the kernels that it may use then."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes, self.allowed = [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is ATTENTION:
            self.shapes += [tuple(each.shape) for each in args[:3]]
            self.allowed.append(allowed())
        return func(*args, **(kwargs or {}))


def allowed() -> set[str]:
    return {name for name, kernel in KERNELS.items() if kernel.is_allowed()}


def tensors(*shape: int, device: str = "cpu", dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(3, *shape, generator=generator).to(device, dtype))


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("name", ["sdpa", "flash", "math"])
def test_attention_in_parts_is_attention(name, most):
    q, k, v = tensors(5, 6, 7, 8)
    k, v = k[:, :4], v[:, :4]  # fewer tokens to attend to
    parts = []
    attend = lambda *each: parts.append(each) or BACKENDS[name](*each)  # noqa: E731
    out = in_parts(attend, q, k, v, most)
    assert relative_error(out, attend_math(q, k, v)) <= 1e-6
    assert all(max(each.shape[0], each.shape[2]) <= most for part in parts for each in part)
    assert len(parts) == -(-5 // most) * -(-7 // most)


def test_gradients_pass_the_parts():
    whole, cut = ([each.requires_grad_() for each in tensors(3, 6, 5, 8)] for _ in range(2))
    BACKENDS["sdpa"](*whole).square().sum().backward()
    in_parts(BACKENDS["sdpa"], *cut, 2).square().sum().backward()
    for one, other in zip(whole, cut, strict=True):
        assert relative_error(other.grad, one.grad) <= 1e-5


def test_no_call_exceeds_what_a_kernel_s_grid_can_be():
    """64×64 tokens of 16 heads are 65,536 heads over time; 4,096 clips of 17 frames are 69,632 sequences."""
    spec = ModelSpec("2D", 64, 16, (4, 128, 128))
    with fake_gpu(), torch.no_grad(), torch.device("cuda"):
        model = DiffusionTransformer(spec)
        with Calls() as calls:
            model(torch.randn(1, 4, 4, 128, 128), torch.zeros(1))
            model(torch.randn(4096, 4, 17, 4, 4), torch.zeros(4096))
    assert (1, 32768, 4, 4) in calls.shapes and (34816, 16, 4, 4) in calls.shapes  # halves of each
    assert max(max(sequences, heads) for sequences, heads, *_ in calls.shapes) <= 65_535


def test_the_default_is_cudnn_nowhere():
    everything = set(KERNELS)
    for device, expected in (("cuda", everything - {"cudnn"}), ("cpu", everything)):  # on a CPU it is not asked
        with fake_gpu(), Calls() as calls:
            BACKENDS["sdpa"](*(torch.empty(2, 4, 3, 16, device=device) for _ in range(3)))
        assert calls.allowed == [expected] and allowed() == everything


@pytest.mark.parametrize("name", ["flash", "efficient", "cudnn"])
def test_a_named_kernel_is_the_only_one_asked(name):
    before = allowed()
    with Calls() as calls:
        try:
            out = BACKENDS[name](*tensors(2, 4, 3, 16))
            assert relative_error(out, attend_math(*tensors(2, 4, 3, 16))) <= 1e-6
        except BackendError as error:
            assert f"attention backend {name}: PyTorch" in str(error)
            assert "torch.float32 (2, 4, 3, 16) on cpu; what runs there: flash, math" in str(error)
    assert calls.allowed[0] == {name} and allowed() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on a GPU")
@pytest.mark.parametrize("name", ["efficient", "cudnn"])
def test_kernels_that_need_a_gpu_are_refused_at_construction(name):
    with pytest.raises(BackendError, match=f"attention backend {name}: .* needs a CUDA device .*; here run sdpa, flash, math"):
        choose_backend(name)
    with pytest.raises(BackendError, match="what runs there: flash, math"):
        BACKENDS[name](*tensors(2, 4, 3, 16))


def test_other_errors_are_left_as_they_are():
    q, k, v = tensors(2, 4, 3, 16)
    with pytest.raises(RuntimeError) as caught:
        BACKENDS["flash"](q, k[..., :8], v)
    assert not isinstance(caught.value, BackendError)


def test_what_the_caller_forbids_stays_forbidden():
    with allowing(("math",)):
        with Calls() as calls, fake_gpu():
            BACKENDS["sdpa"](*(torch.empty(2, 4, 3, 16, device="cuda") for _ in range(3)))
        assert calls.allowed == [{"math"}] and allowed() == {"math"}
    assert allowed() == set(KERNELS)


@pytest.mark.parametrize("name", ["sdpa", "flash"])
def test_a_chosen_kernel_is_part_of_a_graph(name):
    torch.compiler.reset()
    compiled = torch.compile(partial(in_parts, BACKENDS[name], most=4), backend="aot_eager", fullgraph=True)
    q, k, v = tensors(5, 6, 7, 8)
    assert relative_error(compiled(q, k, v), attend_math(q, k, v)) <= 1e-6
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["flash", "efficient", "cudnn", "xformers", "sdpa"])
def test_kernels_on_a_gpu_give_what_is_defined(name):
    try:
        attend = choose_backend(name)
    except BackendError as error:
        assert name == "xformers", error
        pytest.skip(str(error))
    for dtype, tolerance in ((torch.bfloat16, 2e-2), (torch.float32, 1e-5)):
        q, k, v = tensors(2, 16, 48, 72, device="cuda", dtype=dtype)
        try:
            assert relative_error(attend(q, k, v).float(), attend_math(q.float(), k.float(), v.float())) <= tolerance
        except BackendError as error:  # flash and cuDNN have none for float32
            assert dtype == torch.float32 and "what runs there: efficient, math" in str(error)


def test_the_names_that_are_accepted_are_named():
    names = "sdpa, flash, efficient, cudnn, xformers, math"
    with pytest.raises(ValueError, match=f"no attention backend 'fast'; the backends are {names}"):
        attention.choose_backend("fast")
