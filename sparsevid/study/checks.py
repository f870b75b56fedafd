"""Mistakes that would show only once rows are trained, found before: in a row's settings when it is planned, in its data before
the first training of the study.
"""

from collections.abc import Sequence

from sparsevid.benchmark.candidates import Candidate
from sparsevid.data.open import filled_from_card
from sparsevid.data.tree.cards import load_card
from sparsevid.data.tree.manifest import Manifest
from sparsevid.evaluation.protocols import load_protocol
from sparsevid.generation.sampling import Sampling, check_sampling, listed_savings, time_interval
from sparsevid.savings.options import CALIBRATED, parse_savings
from sparsevid.study import StudyError
from sparsevid.study.file import MeasureSettings, SampleSettings

SAID_ELSEWHERE = {"name": "the study's file", "output": "--out", "seed": "`seeds`"}  # keys of a run, and what says them


def check_overrides(overrides: Sequence[str], source: str) -> None:
    """Refuse settings of a run that a study says itself.

    Raises:
        StudyError: one of `SAID_ELSEWHERE`.
    """
    for override in overrides:
        if (key := override.partition("=")[0]) in SAID_ELSEWHERE:
            raise StudyError(f"{source}: override {override}: in a study {SAID_ELSEWHERE[key]} says the {key} of a run")


def check_counts(sample: SampleSettings, measure: MeasureSettings, source: str) -> None:
    """Refuse numbers that nothing can be sampled or measured with.

    Raises:
        StudyError: a number of clips, steps, times, repeats or the like below 1, or resamplings that make no interval.
    """
    for name, part, keys in (
        ("sample", sample, ("clips", "steps", "batch")),
        ("measure", measure, ("clips", "times", "batch", "repeats", "classifier_steps")),
    ):
        for key in keys:
            if getattr(part, key) < 1:
                raise StudyError(f"{source}: {name}.{key} = {getattr(part, key)}; it is at least 1")
    if measure.train_split == measure.split:
        raise StudyError(
            f"{source}: measure.train_split = measure.split = {measure.split}: real clips would be compared with themselves"
        )
    if measure.bootstrap and (measure.bootstrap < 2 or sample.clips < 4):
        raise StudyError(
            f"{source}: measure.bootstrap = {measure.bootstrap}; it is 0 for none, or 2 and more of 4 clips and more"
        )


def check_measurable(run: Candidate, sample: SampleSettings, measure: MeasureSettings, source: str) -> None:
    """Refuse a row that could be trained, and then not sampled or measured.

    Args:
        run: of the row.
        sample, measure: its settings.
        source: of the row, for the message.

    Raises:
        StudyError: what sampling refuses of such a model, no such protocol, or a run without classes and captions.
    """
    spec, config = run.spec, run.run_config
    own = config.sample
    of_text = spec.conditioned_on == "text"  # whether its data have classes beside captions is seen when they are opened
    if not of_text and spec.num_classes < 2:
        raise StudyError(
            f"{source}: the run's data have {spec.num_classes} classes: a study is of class-conditional runs, or of runs with "
            "captions, on data with classes"
        )
    interval = own.guidance_interval if sample.guidance_interval is None else sample.guidance_interval
    try:
        chosen = Sampling(
            sampler=sample.sampler or run.sampler,
            steps=sample.steps,
            seed=sample.seed,
            batch=min(sample.batch, sample.clips),
            labels=(),
            guidance=sample.guidance,
            guidance_interval=None if interval is None else time_interval(interval),
            guidance_channels=own.guidance_channels,
            schedule=sample.schedule or ("paper" if spec.is_sparse else "off"),
            savings=listed_savings(sample.savings),
            eta=0.0,
            input_size=spec.input_size,
            prompts=("a held-out caption",) if of_text else (),
        )
        check_sampling(chosen, spec, config.objective)
        for saving in parse_savings(sample.savings):
            if saving.name not in CALIBRATED:  # these are fitted to the row's model once that is trained
                saving.check(spec)
    except ValueError as error:
        raise StudyError(f"{source}: sample: {error}") from error
    try:
        load_protocol(measure.protocol or config.monitor.protocol)
    except ValueError as error:
        raise StudyError(f"{source}: measure.protocol: {error}") from error
    data = filled_from_card(config.data, load_card(config.data.card, config.data.card_options))
    if data.rule != "stride" or data.target_fps:
        raise StudyError(
            f"{source}: data.rule = {data.rule}, data.target_fps = {data.target_fps or 0}: a study's distance takes every "
            "data.stride-th frame of real videos; accepted are the rule stride and a target_fps of 0"
        )


def check_data(manifest: Manifest, measure: MeasureSettings) -> None:
    """Refuse data by which no row can be measured.

    Args:
        manifest: of the data at hand.
        measure: which splits are asked for.

    Raises:
        StudyError: no classes, or no such split.
    """
    if len(manifest.classes) < 2:
        count = len(manifest.classes)
        raise StudyError(f"the data in {manifest.root} have {count} classes: a study is of data with classes")
    for key in ("split", "train_split"):
        try:
            manifest.select(getattr(measure, key))
        except ValueError as error:
            raise StudyError(f"measure.{key} = {getattr(measure, key)!r}: {error}") from error
