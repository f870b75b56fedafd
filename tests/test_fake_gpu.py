"""What crosses between the host and a device is noted, each way it can: what other tests count on."""

import numpy as np
import pytest
import torch
from fake_gpu import fake_gpu
from torch._subclasses.fake_tensor import DynamicOutputShapeException

REAL = torch.zeros(2)
CROSSINGS = {
    "tensor": (lambda x: torch.tensor([1, 2], device="cuda"), "to device"),
    "numpy": (lambda x: torch.from_numpy(np.zeros(3)).float().to(x.device), "to device"),
    "of before": (lambda x: REAL.to("cuda", torch.bfloat16), "to device"),
    "pageable": (lambda x: torch.zeros(3).to("cuda", non_blocking=True), "to device"),
    "pinned, waiting": (lambda x: torch.zeros(3).pin_memory().to("cuda"), "to device"),
    "in place": (lambda x: x.copy_(torch.zeros(3)), "to device"),
    "index": (lambda x: x[torch.tensor([0])], "to device"),
    "cpu": (lambda x: x.cpu(), "to host"),
    "in place to host": (lambda x: torch.zeros(3).copy_(x), "to host"),
    "item": (lambda x: x[0].item(), "read"),
    "if": (lambda x: bool((x > 0).all()), "read"),
    "equal": (lambda x: torch.equal(x, x), "read"),
}


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
@pytest.mark.parametrize("act, kind", CROSSINGS.values(), ids=CROSSINGS)
def test_each_way_across_is_noted_once_and_waits(act, kind, inference):
    with fake_gpu() as traffic, torch.inference_mode(inference):
        x = torch.randn(3, device="cuda")
        assert traffic.events == []
        act(x)
        assert [(event.kind, event.waits) for event in traffic.events] == [(kind, True)]
        assert __file__ in traffic.events[0].line
        assert traffic.copies == [event for event in traffic.events if kind != "read"]


def test_pinned_copies_that_are_told_not_to_wait_do_not():
    with fake_gpu() as traffic:
        pinned = torch.zeros(4, 3).pin_memory()
        assert pinned.is_pinned() and not torch.zeros(3).is_pinned() and torch.zeros(3, pin_memory=True).is_pinned()
        x = pinned[1:].to("cuda", non_blocking=True)  # a view is in the same memory
        pinned[0].copy_(x[0], non_blocking=True)
        x.to("cpu", non_blocking=True)
        assert [event.kind for event in traffic.events] == ["to device", "to host", "to host"] and traffic.waits == []


def test_what_has_as_many_elements_as_values_say_is_noted_and_raises():
    for act in (lambda x: x[x > 0], lambda x: x.nonzero()):
        with fake_gpu() as traffic, pytest.raises(DynamicOutputShapeException):
            act(torch.randn(3, device="cuda"))
        assert {event.kind for event in traffic.events} == {"read"}


def test_work_on_the_device_or_the_host_alone_is_not_noted():
    with fake_gpu() as traffic:
        x, host = torch.randn(3, 4, device="cuda"), torch.randn(3, 4)
        ((x @ x.T).softmax(-1) * torch.tensor(2.0) + torch.arange(3, device="cuda")).to(torch.bfloat16)
        torch.full((2,), 3.0, device="cuda").index_select(0, torch.zeros(1, dtype=torch.long, device="cuda"))
        host.to(torch.float64).sum().item()
        assert traffic.events == []


def test_modules_move_and_change_type():
    with fake_gpu() as traffic:
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).requires_grad_(False)
        assert net.to("cuda", torch.bfloat16)(torch.randn(2, 3, device="cuda", dtype=torch.bfloat16)).device.type == "cuda"
        assert {(value.device.type, value.requires_grad) for value in net.parameters()} == {("cuda", False)}
        assert len(traffic.copies) == len(net.state_dict())


def test_reads_give_the_answer_in_the_type_of_the_elements():
    with fake_gpu(answer=0):
        assert [torch.ones(1, device="cuda", dtype=dtype).item() for dtype in (torch.bool, torch.long, torch.half)] == [
            False,
            0,
            0.0,
        ]
    with fake_gpu():
        assert bool(torch.randn(3, device="cuda").isfinite().all())
