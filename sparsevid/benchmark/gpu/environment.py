"""What the machine is, and what it can do at most: copies and products of square matrices."""

from collections.abc import Callable, Iterator

import torch

from sparsevid.benchmark.gpu.machine import GIB, open_device, seconds_of, versions
from sparsevid.benchmark.gpu.parts import SKIPPED, Row, Settings
from sparsevid.benchmark.model import plan_matmuls
from sparsevid.system.precision import set_float32

SIDE, TINY_SIDE = 8192, 256  # of the matrices
BYTES, TINY_BYTES = 2**28, 2**22  # of a copy
PRODUCTS = (("bfloat16", "bfloat16", False), ("TF32", "float32", True), ("float32", "float32", False))
REPEATS = 5


def rows(settings: Settings) -> Iterator[Row]:
    """Versions, the device, copies in GB/s, products in TFLOP/s."""
    device = open_device(settings)
    for name, version in versions(device).items():
        yield Row("version", name, version)
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        yield Row("device", "name", found.name)
        yield Row("device", "memory", found.total_memory / GIB, "GiB")
        yield Row("device", "free memory", torch.cuda.mem_get_info(device)[0] / GIB, "GiB")
        yield Row("device", "compute capability", f"{found.major}.{found.minor}")
        yield Row("device", "multiprocessors", found.multi_processor_count)
    for name, call, size in _copies(device, TINY_BYTES if settings.tiny else BYTES):
        call()
        yield Row(f"copy {name}", "rate", size / seconds_of(call, REPEATS) / 1e9, "GB/s")
    yield from products(device, TINY_SIDE if settings.tiny else SIDE)


def products(device: torch.device, side: int) -> Iterator[Row]:
    """Rates of products, two operations a multiply-add."""
    for name, dtype, tf32 in PRODUCTS:
        case = f"product {side}³ {name}"
        if tf32 and device.type != "cuda":
            yield Row(case, SKIPPED, note="only on a GPU")
            continue
        set_float32(tf32)
        yield Row(case, "rate", 2e-12 * product_rate(device, dtype, side), "TFLOP/s")
    set_float32()


def product_rate(device: torch.device, dtype: str, side: int) -> float:
    """Multiply-adds a second of a product of square matrices."""
    (call,) = plan_matmuls([dtype], device, [side]).values()
    call()
    return side**3 / seconds_of(call, REPEATS)


def _copies(device: torch.device, size: int) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Names, copies, and the bytes of each."""
    host = torch.zeros(size, dtype=torch.uint8)
    if device.type != "cuda":
        yield "host to host", lambda: host.clone(), size
        return
    pinned, there = host.pin_memory(), host.to(device)
    yield "host to device, pinned", lambda: there.copy_(pinned, non_blocking=True), size
    yield "host to device, pageable", lambda: there.copy_(host), size
    yield "device to host, pinned", lambda: pinned.copy_(there, non_blocking=True), size
    yield "device to host, pageable", lambda: host.copy_(there), size
    yield "device to device, read and written", lambda: there.clone(), 2 * size
