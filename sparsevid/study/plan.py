"""What a row of a study is: its run, what it starts from, how it is sampled, what it costs, and by what it is told apart.

A row of another study is `NAME/ROW`, of the file NAME.yaml beside this one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from sparsevid.benchmark.candidates import Candidate, open_run
from sparsevid.data.open import KnownTrees
from sparsevid.data.tree.cards import CARD_SUFFIXES, ClipDefaults, load_card
from sparsevid.data.tree.rules import TreeRules
from sparsevid.diffusion.samplers import sampler_times
from sparsevid.diffusion.wrappers import guidance_acts
from sparsevid.evaluation.protocols import list_protocols, load_protocol
from sparsevid.evaluation.protocols.protocol import told_apart_by
from sparsevid.runs.config import RunConfig
from sparsevid.sparsity.cost import forward_macs, sampling_macs
from sparsevid.study import StudyError
from sparsevid.study.checks import check_counts, check_measurable, check_overrides
from sparsevid.study.file import (
    NOTHING,
    SAME_RUN,
    MeasureSettings,
    RowSettings,
    SampleSettings,
    StudyFile,
    changed,
    dotted,
    laid_over,
    nearest,
    read_study,
)
from sparsevid.study.measurements import CONTROL
from sparsevid.study.results import Line, agree, digest
from sparsevid.text.cache import TextCache

FINE_TUNED = 1000  # between the seeds of a run and of what is fine-tuned from it
REFERENCES = ("start", "teacher", "of", "steps_of", "macs_of")
PASSES = 3  # a backward pass costs two forwards
UNWATCHED = tuple(f"monitor.{task}_every=0" for task in ("validate", "sample", "score"))  # a study measures at the end


@dataclass(frozen=True)
class Row:
    """A row with all that it is `like`; references are `STUDY/ROW`.

    Attributes:
        study: that it is of.
        name: in it.
        settings: its own keys, and those of what it is like.
        overrides: of the base run, `key=value`, the later ones win.
        seeds: of training.
    """

    study: "Study"
    name: str
    settings: RowSettings
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def measured(self) -> bool:
        """Whether it has a line in the results, or is only there for others to start from."""
        return self.settings.measured is not False


@dataclass(frozen=True, eq=False)
class Plan:
    """A row and seed, ready to be done. A study makes each once.

    Attributes:
        row: of which study, and which.
        seed: of training.
        run: the run that is trained; of a row that samples another's run, that.
        start, teacher: what it is fine-tuned from, and distilled from.
        of: whose run it samples; None: its own.
        sample, measure: settings.
    """

    row: Row
    seed: int
    run: Candidate
    start: "Plan | None"
    teacher: "Plan | None"
    of: "Plan | None"
    sample: SampleSettings
    measure: MeasureSettings

    @property
    def name(self) -> str:
        """For messages: `paper/sparse, seed 1`."""
        return f"{self.row.study.name}/{self.row.name}, seed {self.seed}"

    @property
    def source(self) -> "Plan":
        """The row whose run this one samples: mostly itself."""
        return self if self.of is None else self.of.source

    @property
    def config(self) -> RunConfig:
        """Of the run."""
        return self.run.run_config

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.config.folder

    @property
    def own_folder(self) -> Path:
        """Of what is measured of this row and seed; of a row that trains, the run's."""
        return self.row.study.runs / self.row.name / f"seed-{self.seed}"

    @property
    def needed(self) -> tuple["Plan", ...]:
        """The rows whose runs have to be there first."""
        return tuple(each for each in (self.start, self.teacher) if each is not None) if self.of is None else (self.of.source,)

    @cached_property
    def step_macs(self) -> float:
        """Multiply-adds of an optimizer step: forward and backward passes, a teacher's forwards; stages as often as drawn."""
        run, clips = self.run, self.config.train.global_batch
        if run.schedule is None:
            forward = float(forward_macs(run.spec))
        else:
            shares = [(run.times.mass(stage), forward_macs(run.spec, grid=stage.grid)) for stage in run.schedule.stages]
            forward = sum(share * macs for share, macs in shares) / sum(share for share, _ in shares)
        return clips * (PASSES * forward + (0 if self.source.teacher is None else forward_macs(run.spec.dense())))

    @property
    def training_macs(self) -> float:
        """Multiply-adds of its own training, without that of what it starts from."""
        return self.step_macs * self.config.train.steps

    @property
    def total_steps(self) -> int:
        """Steps, with those of what it starts from."""
        before = self.source.start
        return self.config.train.steps + (0 if before is None else before.total_steps)

    @property
    def total_macs(self) -> float:
        """Multiply-adds of training, with that of what it starts from."""
        before = self.source.start
        return self.training_macs + (0 if before is None else before.total_macs)

    @property
    def sampled_macs(self) -> float:
        """Multiply-adds of a sampled clip, without savings."""
        times = sampler_times(self.sample.sampler or self.run.sampler, self.sample.steps)
        low, high = self.sample.guidance_interval or self.config.sample.guidance_interval or (0.0, 1.0)
        if self.sample.guidance != 1.0:
            times = [*times, *(u for u in times if guidance_acts((low, high), u))]
        return sampling_macs(self.run.spec, self.run.schedule, times).mean_macs * len(times)

    @cached_property
    def trained(self) -> str:
        """What tells its training apart, with all that it starts from; fields that have their defaults do not count."""
        named = {"train.init_from": self.source.start, "distill.teacher": self.source.teacher}
        own = [key for key, each in named.items() if each is not None]  # a path, in place of which its own mark counts
        parts = [None if each is None else each.trained for each in named.values()]
        values = asdict(self.config)
        if self.config.data.captions is not None:
            values["data"]["captions"] = "given"  # in place of a path: what they are says `of_training`
        return digest([changed(values, asdict(RunConfig()), (*SAME_RUN, *own)), *parts])

    @cached_property
    def settings(self) -> str:
        """What tells its figures apart: two rows of the same settings have the same."""
        run = self.config.sample
        measure = replace(self.measure, protocol=self.measure.protocol or self.config.monitor.protocol)
        sample = replace(  # with what the study leaves to the run
            self.sample,
            sampler=self.sample.sampler or run.sampler,
            guidance_interval=self.sample.guidance_interval or run.guidance_interval,
        )
        parts = changed(asdict(sample), asdict(SampleSettings())), changed(asdict(measure), asdict(MeasureSettings()))
        return digest([self.trained, run.guidance_channels, *parts])

    @property
    def of_training(self) -> dict[str, str | None]:
        """What its settings only name, and what tells its run apart too: the data and features of captions at hand, and what a
        card that is named by its path says.
        """
        data = self.config.data
        return {"data": self.row.study.data.fingerprint(data), "card": self._card, "captions": self._captions}

    @property
    def of_figures(self) -> dict[str, str | None]:
        """The same of its figures, with what a protocol says that is named by its path."""
        return self.of_training | {"protocol": self._protocol}

    @cached_property
    def _card(self) -> str | None:
        if Path(self.config.data.card).suffix not in CARD_SUFFIXES:
            return None
        card = load_card(self.config.data.card, self.config.data.card_options)
        pairs = ((card.rules(), TreeRules()), (card.clip, ClipDefaults()))
        return digest([changed(asdict(own), asdict(default)) for own, default in pairs])

    @cached_property
    def _captions(self) -> str | None:
        try:
            return None if self.config.data.captions is None else TextCache.open(self.config.data.captions).fingerprint()
        except (OSError, ValueError):  # not here, or of another form, which says training
            return None

    @cached_property
    def _protocol(self) -> str | None:
        named = self.measure.protocol or self.config.monitor.protocol
        return None if named in list_protocols() else digest(told_apart_by(load_protocol(named).as_dict()))

    def fits(self, line: Line) -> bool:
        """Whether a line's figures are of this row's settings, and of what these name; its weights may be others."""
        return line["settings"] == self.settings and agree(line, self.of_figures)


class Study:
    """A study's rows, at a scale.

    Args:
        path: its file.
        out: folder of the runs of all studies.
        scale: a key of its `scales`; None: as the file is.
        overrides: of the base run, below the rows'.
        known: studies that are open already, by path; they share it.

    Raises:
        StudyError: as `read_study`; or there is no such scale.
    """

    def __init__(
        self, path: Path, out: Path, scale: str | None = None, overrides: Sequence[str] = (),
        known: "dict[Path, Study] | None" = None,
    ) -> None:  # fmt: skip
        self.path, self.out, self.scale, self.given = path, out, scale, tuple(overrides)
        self.file: StudyFile = read_study(path)
        self.known = {} if known is None else known
        self.data: KnownTrees = next((each.data for each in self.known.values()), KnownTrees())
        self.known[path.resolve()] = self
        self._rows: dict[str, Row] = {}
        self._plans: dict[tuple[str, int], Plan] = {}
        self._open: list[tuple[str, int]] = []  # plans in the making, to find circles
        self._own: dict[str, list[str]] = {}  # overrides of single rows at this scale
        self.overrides = dotted(self.file.overrides)
        self.sample, self.measure, self.seeds = self.file.sample, self.file.measure, tuple(self.file.seeds)
        if scale is not None:
            self._rescale(scale)

    def _rescale(self, scale: str) -> None:
        where, scales = f"{self.path}: scales.{scale}", self.file.scales
        if scale not in scales:
            raise StudyError(f"{self.path} has no scale {scale!r}; {nearest(scale, list(scales)) if scales else 'it has none'}")
        found = scales[scale]
        for name in found.rows:
            self._check(name, where)
        self._own = {name: dotted(changes) for name, changes in found.rows.items()}
        self.overrides += dotted(found.overrides)
        self.sample = laid_over(self.sample, found.sample, f"{where}.sample")
        self.measure = laid_over(self.measure, found.measure, f"{where}.measure")
        self.seeds = tuple(found.seeds or self.seeds)

    @property
    def name(self) -> str:
        """With its scale."""
        return self.file.study if self.scale is None else f"{self.file.study}-{self.scale}"

    @property
    def runs(self) -> Path:
        """Folder of its runs."""
        return self.out / self.name

    def control(self, name: str) -> str | None:
        """The row of this study that a row is compared with, if there is one; none for itself."""
        own = self.row(name).settings.control if name in self.file.rows else None
        found = own or self.file.control or CONTROL
        return found if found in self.file.rows and found != name else None

    def row(self, name: str) -> Row:
        """A row with all that it is like.

        Raises:
            StudyError: there is no such row, or rows are like each other.
        """
        if name not in self._rows:
            self._check(name, str(self.path))
            own, overrides = self.file.rows[name], dotted(self.file.rows[name].overrides) + self._own.get(name, [])
            given: dict = {key: self._whole(value) for key in REFERENCES if (value := getattr(own, key)) is not None}
            row = Row(self, name, replace(own, **given), tuple(overrides), tuple(own.seeds or self.seeds))
            if own.like is not None:
                self._rows[name] = replace(row, settings=replace(own, like=name))  # found again, it is a circle
                row = self._like(row, own.like)
            self._rows[name] = row
        if self._rows[name].settings.like == name:
            raise StudyError(f"{self.path}: row {name!r} is like itself, through others")
        return self._rows[name]

    def _like(self, row: Row, like: str) -> Row:
        other, name = self.find(like)
        below, own = other.row(name), row.settings
        names = ("note", "base", "measured", "seeds", *REFERENCES)
        merged = {key: getattr(below.settings, key) if getattr(own, key) in (None, "") else getattr(own, key) for key in names}
        if other is self and own.control is None:  # that of a row of another study is none here
            merged["control"] = below.settings.control
        merged["sample"] = {**below.settings.sample, **own.sample}
        settings = replace(own, **merged, like=None)
        seeds = tuple(settings.seeds or self.seeds)
        return replace(row, settings=settings, overrides=(*below.overrides, *row.overrides), seeds=seeds)

    def find(self, reference: str) -> tuple["Study", str]:
        """The study and the name of a row that another one names."""
        study, _, name = reference.rpartition("/")
        if study in ("", self.file.study):
            return self, name
        path = self.path.with_name(f"{study}.yaml")
        if path.resolve() not in self.known:
            Study(path, self.out, self.scale, self.given, self.known)
        return self.known[path.resolve()], name

    def plan(self, name: str, seed: int) -> Plan:
        """A row and seed, with all that it needs.

        Raises:
            StudyError: no such row, rows that need each other, or keys that exclude one another.
            ConfigError, FileNotFoundError, KeyError, ValueError: as `open_run`.
        """
        key = (name, seed)
        if key in self._open:
            raise StudyError(f"{self.path}: rows need each other: {' → '.join(each for each, _ in (*self._open, key))}")
        if key not in self._plans:
            self._open.append(key)
            try:
                self._plans[key] = self._plan(self.row(name), seed)
            finally:
                self._open.pop()
        return self._plans[key]

    def _plan(self, row: Row, seed: int) -> Plan:
        needs = {each: self._named(row, each, seed) for each in REFERENCES}
        where = f"{self.path}: rows.{row.name}"
        sample = laid_over(self.sample, row.settings.sample, f"{where}.sample")
        check_counts(sample, self.measure, str(self.path))
        of, length = needs["of"], [(key, needed) for key in ("steps_of", "macs_of") if (needed := needs[key]) is not None]
        if of is not None and (row.overrides or any(needs[each] is not None for each in REFERENCES if each != "of")):
            raise StudyError(
                f"{where} is `of` another row, whose run it samples: it trains nothing, and takes no key of training"
            )
        if len(length) > 1:
            raise StudyError(f"{where} says steps_of and macs_of: one of them")
        run = self._run(row, seed, needs) if of is None else of.run
        if row.measured:
            check_measurable(run, sample, self.measure, where)
        plan = Plan(row, seed, run, needs["start"], needs["teacher"], of, sample, self.measure)
        if not length:
            return plan
        (key, other), before = length[0], needs["start"]
        if key == "steps_of":
            steps = other.total_steps - (0 if before is None else before.total_steps)
        else:
            steps = round((other.total_macs - (0 if before is None else before.total_macs)) / plan.step_macs)
        if steps < 1:
            raise StudyError(f"{where}: {key} {row.settings.steps_of or row.settings.macs_of} leaves no step to train")
        return replace(plan, run=self._run(row, seed, needs, f"train.steps={steps}"))

    def _run(self, row: Row, seed: int, needs: dict[str, Plan | None], *more: str) -> Candidate:
        # Draws of a fine-tune are its own, not again those of the first steps of what it starts from.
        draws = seed + FINE_TUNED * _generation(needs["start"])
        place = [f"output={self.runs / row.name}", f"name=seed-{seed}", f"seed={draws}"]
        keys = {"start": "train.init_from", "teacher": "distill.teacher"}
        sources = [f"{key}={plan.folder}" for each, key in keys.items() if (plan := needs[each]) is not None]
        below = ["train.keep_checkpoints=1", *self.overrides, *self.given]
        check_overrides([*below, *row.overrides], f"{self.path}: rows.{row.name}")
        return open_run(
            self.path.parent / (row.settings.base or self.file.base),
            [*below, *row.overrides, *UNWATCHED, *place, *sources, *more],
        )

    def _named(self, row: Row, key: str, seed: int) -> Plan | None:
        """The row that a key of another one names."""
        reference = getattr(row.settings, key)
        if reference in (None, NOTHING):
            return None
        study, name = self.find(reference)
        return study.plan(name, seed)

    def _whole(self, reference: str) -> str:
        """A reference that means the same in another study's file."""
        return reference if "/" in reference or reference == NOTHING else f"{self.file.study}/{reference}"

    def _check(self, name: str, where: str) -> None:
        if name not in self.file.rows:
            raise StudyError(f"{where}: no row {name!r}; {nearest(name, list(self.file.rows))}")


def _generation(start: Plan | None) -> int:
    """How many runs lie before one, each started from the next."""
    return 0 if start is None else 1 + _generation(start.source.start)
