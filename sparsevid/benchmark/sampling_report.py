"""What the benchmark of sampling prints and writes."""

from sparsevid.benchmark.report import MISSING
from sparsevid.benchmark.sampling import Product, SamplingMeasurement, SamplingResult

SAMPLING_COLUMNS = (
    "preset",
    "sampler",
    "steps",
    "batch",
    "dtype",
    "compiled",
    "s/clip in latents",
    "spread",
    "dense / this",
    "counted",
    "of matmul",
    "decode s/clip",
    "write s/clip",
    "clips/s",
    "dense / this, end to end",
    "model, decode, write",
    "measured",
)
FULL, EXTRAPOLATED, PRODUCT = "full run", "extrapolated", "product, extrapolated"


def sampling_lines(measured: SamplingMeasurement, autoencoder: str) -> list[str]:
    """What a reader of the table has to know, a line each, and each product.

    Args:
        measured: as `measure_sampling` gives it.
        autoencoder: what decoded, as the reader is to know it.
    """
    lines = []
    for dtype, rates in measured.matmul_rates.items():
        best = max(rates, key=rates.__getitem__)
        lines.append(f"best {dtype} matmul of {', '.join(map(str, rates))}: {best}, {rates[best] / 1e9:.1f} GMAC/s")
    lines += [
        "random weights; s/clip in latents: median of the turns from noise to latents, spread: slowest less fastest over it; "
        "dense / this: median over the turns of the dense model's seconds over these in the same turn; counted: multiply-adds "
        "of the dense model over these; of matmul: multiply-adds a second over the best matmul's",
        f"decode: {autoencoder}; clips/s and model, decode, write (shares of the time): one part after the other, where bulk "
        "generation decodes and writes while the next batch is denoised",
        f"{EXTRAPOLATED}: one call of the model timed in each stage of the token schedule in each turn, and added up over all "
        "calls of the sampler; decoding and writing measured",
    ]
    return lines + [_product_line(product) for product in measured.products]


def sampling_rows(measured: SamplingMeasurement) -> list[list[str]]:
    """A row of `SAMPLING_COLUMNS` for each case and each product."""
    return [_row(result) for result in measured.results] + [_product_row(product) for product in measured.products]


def sampling_as_json(header: dict, measured: SamplingMeasurement) -> dict:
    """Everything measured, as plain values: seconds, multiply-adds.

    Args:
        header: as `describe_run` gives it.
        measured: as `measure_sampling` gives it.
    """
    return {
        "header": header,
        "matmul_macs_per_second": {
            dtype: {str(size): rate for size, rate in rates.items()} for dtype, rates in measured.matmul_rates.items()
        },
        "results": [_result_as_json(result) for result in measured.results],
        "products": [
            {"dense": _name(each.dense), "sparse": _name(each.sparse), "batch": each.sparse.case.batch, "speed": each.speed}
            for each in measured.products
        ],
    }


def _row(result: SamplingResult) -> list[str]:
    case, whole = result.case, result.clip_seconds
    decoded = bool(result.decode_turns)
    shares = (result.latent_seconds / whole, result.decode_seconds / whole, result.write_seconds / whole)
    return [
        case.preset,
        case.sampler,
        str(case.steps),
        str(case.batch),
        case.network.dtype,
        "yes" if case.network.compiled else "no",
        f"{result.latent_seconds:.4g}",
        f"{result.spread:.0%}",
        _ratio(result.latent_speed),
        f"{result.counted_speed:.2f}×",
        f"{result.matmul_share:.0%}",
        f"{result.decode_seconds:.3g}" if decoded else MISSING,
        f"{result.write_seconds:.3g}" if decoded else MISSING,
        f"{1 / whole:.3g}",
        _ratio(result.clip_speed) if decoded else MISSING,
        " ".join(f"{share:.1%}" for share in shares) if decoded else MISSING,
        EXTRAPOLATED if case.extrapolated else FULL,
    ]


def _product_row(product: Product) -> list[str]:
    cells = dict.fromkeys(SAMPLING_COLUMNS, MISSING)
    case, dense = product.sparse.case, product.dense.case
    cells |= {
        "preset": f"{case.preset} against {dense.preset}",
        "sampler": f"{case.sampler} against {dense.sampler}",
        "steps": f"{case.steps} against {dense.steps}",
        "batch": str(case.batch),
        "dtype": case.network.dtype,
        "compiled": "yes" if case.network.compiled else "no",
        "s/clip in latents": f"{product.sparse.latent_seconds:.4g}",
        "dense / this": _ratio(product.speed),
        "counted": f"{dense.macs / case.macs:.2f}×",
        "measured": PRODUCT,
    }
    return list(cells.values())


def _product_line(product: Product) -> str:
    case = product.sparse.case
    return (
        f"product, extrapolated from single calls (batch {case.batch}, {case.network.dtype}): {_name(product.sparse)} takes "
        f"{product.sparse.latent_seconds:.4g} s/clip in latents, {_name(product.dense)} {product.dense.latent_seconds:.4g}: "
        f"{product.speed:.1f}×, median over the turns"
    )


def _result_as_json(result: SamplingResult) -> dict:
    case = result.case
    return {
        "preset": case.preset,
        "layout": case.network.spec.layout,
        "input_size": list(case.network.spec.input_size),
        "sampler": case.sampler,
        "steps": case.steps,
        "batch": case.batch,
        "dtype": case.network.dtype,
        "compiled": case.network.compiled,
        "extrapolated": case.extrapolated,
        "calls": [
            {"grid": None if call.grid is None else list(call.grid), "count": len(times)} for call, times in case.calls.items()
        ],
        "macs": case.macs,
        "model_seconds_of_turns": list(result.turns),
        "decode_seconds_of_turns": list(result.decode_turns),
        "write_seconds_of_turns": list(result.write_turns),
        "seconds_per_clip_in_latents": result.latent_seconds,
        "seconds_per_clip": result.clip_seconds,
        "matmul_share": result.matmul_share,
        "dense_over_this_in_latents": result.latent_speed,
        "dense_over_this": result.clip_speed,
        "counted": result.counted_speed,
    }


def _name(result: SamplingResult) -> str:
    return f"{result.case.preset} {result.case.sampler} {result.case.steps}"


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}×"
