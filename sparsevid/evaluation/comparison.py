"""Step three: two feature files to a score, and what is computed beside it."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from sparsevid.evaluation.detectors import detector_class
from sparsevid.evaluation.features import FeatureFile, check_comparable
from sparsevid.evaluation.metrics.clip_score import Prompts
from sparsevid.evaluation.metrics.distances import Moments
from sparsevid.evaluation.metrics.table import METRICS, Metric
from sparsevid.evaluation.metrics.uncertainty import PARTS, bootstrap_interval, extrapolate
from sparsevid.evaluation.protocols import Protocol
from sparsevid.evaluation.record import ProtocolRecord
from sparsevid.system.logging import get_logger

FRECHET = "frechet"
LEVEL = 0.95  # of a bootstrap interval

logger = get_logger(__name__)


@dataclass(frozen=True)
class Extras:
    """What is computed beside the score.

    Attributes:
        repeats: draws of clips, by seeds that follow the protocol's; the score is their mean.
        bootstrap: resamplings for an interval of the first draw's score, 2 or more; 0 for none.
        extrapolate: fit the first draw's score against 1/N.
        pictures: pictures are to be drawn: the fit, where there are clips enough for it, and clips beside real ones.
        halves: keep the values that the interval is made of, by which scores of the same clips and noise are compared.

    Raises:
        ValueError: a number is out of range.
    """

    repeats: int = 1
    bootstrap: int = 0
    extrapolate: bool = False
    pictures: bool = False
    halves: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.bootstrap < 0 or self.bootstrap == 1:
            raise ValueError(
                f"repeats count from 1, bootstrap resamplings from 2 or are 0 for none, got {self.repeats} and {self.bootstrap}"
            )


def compares(protocol: Protocol | None) -> bool:
    """Whether a protocol looks at real clips: not where all its metrics judge generated clips alone."""
    return any(metric.compares for metric in _metrics(protocol))


def is_prompted(protocol: Protocol | None) -> bool:
    """Whether a metric of a protocol judges clips by their prompts."""
    return any(metric.prompted for metric in _metrics(protocol))


def check_protocol(detector: str, protocol: Protocol | None, extras: Extras, *, prompted: bool = False) -> None:
    """Refuse metrics and extras that cannot work, whatever the clips.

    Args:
        prompted: prompts of the clips are known.

    Raises:
        ValueError: a metric is unknown, needs logits and the detector gives features, or the other way round, or judges by
            prompts that are not known; or an extra is for distances, and the first metric is none.
    """
    outputs = detector_class(detector).outputs()
    for metric in _metrics(protocol):
        if metric.prompted and not prompted:
            raise ValueError(
                f"metric {metric.name} judges clips by their prompts: it is computed by `evaluate score`, from the clips' own "
                "record or --prompts"
            )
        if metric.needs not in outputs:
            given = ", ".join(outputs)
            raise ValueError(f"metric {metric.name} needs {metric.needs}, detector {detector!r} gives {given}")
    first = _metrics(protocol)[0]
    if (extras.bootstrap or extras.extrapolate or extras.pictures) and not first.compares:
        raise ValueError(f"bootstrap, extrapolation and plots are for distances between two sets, {first.name} is none")


def check_counts(
    protocol: Protocol | None, extras: Extras, real: int | None, fake: int, statistics: Collection[str] = ()
) -> None:
    """Refuse metrics and extras that need more clips than there are.

    Args:
        protocol: of the metrics.
        extras: beside them.
        real: number of real clips; None where the protocol looks at none.
        fake: number of generated ones.
        statistics: outputs of the detector of which mean and covariance over the real clips are given.

    Raises:
        ValueError: which needs how many; or an extra draws from real clips, and the score takes their statistics.
    """
    first = _metrics(protocol)[0]
    if (extras.bootstrap or extras.extrapolate) and first.by_moments and first.needs in statistics:
        raise ValueError(
            "bootstrap and extrapolation draw from the real clips, and the score takes the statistics of a reference file: "
            "give the clips themselves"
        )
    needs: list[tuple[Any, ...]] = [
        (f"metric {metric.name}", 0 if metric.by_moments and metric.needs in statistics else metric.least[0], metric.least[1])
        for metric in _metrics(protocol)
    ]
    if extras.bootstrap:
        needs.append(("a bootstrap interval", *(2 * each for each in first.least)))  # of half-samples
    if extras.extrapolate:
        needs.append(("an extrapolation", *(2 * PARTS * each for each in first.least)))  # of the parts of half-samples
    for what, real_least, fake_least in needs:
        for side, least, there in (("real", real_least, real), ("generated", fake_least, fake)):
            if there is not None and there < least:
                raise ValueError(f"{what} takes {least} {side} clips or more, got {there}")


def compare_features(
    real: FeatureFile | None,
    fake: FeatureFile,
    extras: Extras | None = None,
    *,
    quiet: bool = False,
    prompts: Prompts | None = None,
) -> ProtocolRecord:
    """The metrics of two feature files, with their record.

    They are the protocol's. Without a protocol it is the Fréchet distance with unbiased covariances.

    Args:
        real: features of real clips; None where the protocol looks at none.
        fake: features of generated ones.
        extras: what is wanted beside; repeats and pictures are not made here.
        quiet: leave warnings to the record, and log none.
        prompts: of the generated clips, where a metric judges by them.

    Raises:
        ValueError: the files do not belong together, name no known detector or usable protocol, there are fewer clips than a
            metric or an extra needs, or a metric does not fit the detector.
    """
    extras = extras or Extras()
    protocol = None if fake.protocol is None else Protocol.from_dict(fake.protocol)
    check_protocol(fake.detector, protocol, extras, prompted=prompts is not None)
    if not compares(protocol):
        real = None
    elif real is None:
        raise ValueError(f"{_metrics(protocol)[0].name} compares with real clips: their features are needed")
    else:
        check_comparable(real, fake)
    counts = None if real is None else len(real.clip_ids), len(fake.clip_ids)
    check_counts(protocol, extras, *counts, () if real is None else real.moments)
    files = {side: file for side, file in (("real", real), ("fake", fake)) if file is not None}
    values = compute_metrics(real, fake, protocol, prompts)
    spread = _spread(real, fake, protocol, extras)
    warnings = [text for side, file in files.items() for text in _warnings(side, file, protocol)]
    warnings += _fit_warnings(spread.get("extrapolation"), _taken(fake, _metrics(protocol)[0]).shape[1])
    for text in () if quiet else warnings:
        logger.warning("%s", text)
    sides = {side: {"clips": len(file.clip_ids), **(file.source or {})} for side, file in files.items()}
    first = next(iter(files.values())).source or {}
    return ProtocolRecord(
        metric=metric_title(fake.detector, protocol),
        score=next(iter(values.values())),
        values=values,
        protocol=None if protocol is None else protocol.as_dict(),
        protocol_fingerprint=None if protocol is None else protocol.fingerprint,
        detector={
            "name": fake.detector,
            "fingerprint": fake.detector_fingerprint,
            "preprocessing": fake.preprocessing,
            "settings": fake.detector_settings,
        },
        real=sides.get("real"),
        fake=sides["fake"],
        warnings=tuple(warnings),
        versions={side: file.versions for side, file in files.items()},
        computation={side: file.computation for side, file in files.items()},
        prompts=None if prompts is None else dict(prompts.origin),
        split=first.get("split", None if protocol is None or real is None else protocol.split),
        seed=first.get("seed", None if protocol is None else protocol.seed),
        **spread,
    )


def compute_metrics(
    real: FeatureFile | None, fake: FeatureFile, protocol: Protocol | None, prompts: Prompts | None = None
) -> dict[str, float]:
    """Every value of every metric of a protocol, in its order.

    Args:
        real: features of real clips; None where no metric looks at them.
        fake: features of generated ones.
        protocol: names the metrics; None for the Fréchet distance.
        prompts: of the generated clips, where a metric judges by them.

    Raises:
        ValueError: see `check_protocol` and the metrics.
    """
    check_protocol(fake.detector, protocol, Extras(), prompted=prompts is not None)
    options = {**_options(protocol), "prompts": prompts}
    values: dict[str, float] = {}
    for metric in _metrics(protocol):
        values |= metric.compute(_real_side(real, metric), _taken(fake, metric), options)
    return values


def _real_side(real: FeatureFile | None, metric: Metric) -> Tensor | Moments | None:
    """What a metric compares with: the statistics of a reference file where it takes them, else features."""
    if real is None:
        return None
    moments = real.moments.get(metric.needs) if metric.by_moments else None
    return _taken(real, metric) if moments is None else moments


def _taken(file: FeatureFile, metric: Metric) -> Tensor:
    """The columns of the features that a metric takes."""
    return file.features[:, detector_class(file.detector).outputs()[metric.needs]]


def metric_title(detector: str, protocol: Protocol | None) -> str:
    """What the first value of a record is called: the detector's name for a Fréchet distance, else the metric's with it."""
    first, title = _metrics(protocol)[0], detector_class(detector).metric
    return title if first.name == FRECHET else f"{first.title} ({title})"


def _metrics(protocol: Protocol | None) -> list[Metric]:
    names = (FRECHET,) if protocol is None else protocol.metrics
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metrics {', '.join(unknown)}; known are {', '.join(METRICS)}")
    return [METRICS[name] for name in names]


def _options(protocol: Protocol | None) -> dict[str, Any]:
    """What of a protocol metrics depend on."""
    return {"covariance": "unbiased", "seed": 0} if protocol is None else protocol.as_dict()


def _spread(real: FeatureFile | None, fake: FeatureFile, protocol: Protocol | None, extras: Extras) -> dict[str, Any]:
    """Interval and extrapolation of the first metric."""
    metric, options = _metrics(protocol)[0], _options(protocol)
    found: dict[str, Any] = {}
    if real is None:
        return found

    def distance(a: Tensor, b: Tensor) -> float:
        return next(iter(metric.compute(a, b, options).values()))

    sides = _taken(real, metric), _taken(fake, metric)
    if extras.bootstrap:
        rule: dict[str, Any] = {"repeats": extras.bootstrap, "level": LEVEL}
        interval = bootstrap_interval(distance, *sides, seed=options["seed"], **rule)
        found["interval"] = {"low": interval.low, "high": interval.high} | rule
        if extras.halves:
            found["interval"]["halves"] = list(interval.halves)
    if extras.extrapolate:
        found["extrapolation"] = asdict(extrapolate(distance, *sides, seed=options["seed"]))
    return found


def _fit_warnings(fit: dict[str, Any] | None, dimensions: int) -> list[str]:
    if fit is None or fit["reliable"]:
        return []
    return [
        f"the fit against 1/clips goes down to {min(fit['sizes'])} generated clips for {dimensions} dimensions: its value for "
        "N → ∞ is not reliable, which takes subsets of as many real and generated clips as dimensions"
    ]


def _warnings(side: str, file: FeatureFile, protocol: Protocol | None) -> list[str]:
    """What its choice of clips said, and how much fewer clips than the protocol's raise a Fréchet distance."""
    source = file.source or {}
    warnings = [f"{side}: {text}" for text in source.get("warnings", ())]
    if protocol is None:
        return warnings
    intended, there = source.get("intended", getattr(protocol, f"{side}_count")), len(file.clip_ids)
    if intended is None or there >= intended:  # None: all clips of a source that does not say how many these are
        return warnings
    bias = "bias the score"
    if protocol.metrics[0] == FRECHET:
        # E‖μ̂ − μ‖² = tr Σ / N exactly; the covariance's share comes on top.
        excess = _taken(file, METRICS[FRECHET]).double().var(dim=0).sum().item() * (1 / there - 1 / intended)
        bias = f"bias the score upwards, by {excess:.4g} or more"
    return [
        *warnings,
        f"{side}: {there} clips, protocol {protocol.name} intends {intended}. Fewer clips {bias}: compare it only with scores "
        "of as many clips",
    ]
