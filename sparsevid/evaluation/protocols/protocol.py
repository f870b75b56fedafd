"""What a protocol is: everything beside the data that a score depends on, as fields without defaults."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.system.checksums import json_sha256

Role = Literal["real", "fake"]
BOTH = "both"  # a protocol's split: the training and the test split are scored, each by itself
CHOICES = {
    "real_start": ("random", "first", "all"),
    "fake_start": ("first", "random", "all"),
    "resize": ("cover", "stretch", "stretch_aliased"),
    "real_selection": ("spread", "sorted", "random", "balanced"),
    "fake_selection": ("spread", "sorted", "random", "balanced"),
    "covariance": ("unbiased", "biased"),
    "geometry": ("stored", "display"),
}
_LEAST = {
    "frames": 1, "real_stride": 1, "fake_stride": 1, "real_min_frames": 1, "fake_min_frames": 1,
    "real_count": 2, "fake_count": 2, "clips_per_video": 1, "seed": 0,
}  # fmt: skip

# Fields that were added after protocols had been released, and what held for all of them before.
ADDED = {"geometry": "stored"}


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a protocol as they were written, with those that were added since."""
    return {**values, **{key: value for key, value in ADDED.items() if key not in values}}


def told_apart_by(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that make a protocol another one: so what was made under one before a field was added still belongs to it."""
    return {key: value for key, value in values.items() if key not in ADDED or value != ADDED[key]}


@dataclass(frozen=True)
class Side:
    """What a protocol says of its real or of its generated videos; see `Protocol`.

    Attributes:
        rule: what frames make a clip.
        start: where clips of a video start.
        least_frames: that a video has to have.
        count: clips at most, or None.
        clips_per_video: clips of one video at most, or None.
        selection: order of videos.
    """

    rule: ClipRule
    start: str
    least_frames: int
    count: int | None
    clips_per_video: int | None
    selection: str


@dataclass(frozen=True)
class Protocol:
    """What a score depends on beside the data.

    A clip is `frames` frames of a video, a stride apart. Clips are taken from the videos that are long enough: the selection
    puts them in an order; then one clip of every video is taken, a second of every video that has one, … up to the count. A
    balanced selection does so in each class, and takes one clip of every class, a second of every class that has one, ….

    Attributes:
        name: with a version. The names of this package's own protocols are reserved.
        detector: a name that `build_detector` knows.
        detector_options: its options, where they differ from its defaults.
        metrics: names of `METRICS`; the first is the score.
        frames: frames of a clip.
        real_stride: step between a clip's frames in a real video.
        fake_stride: the same in a generated video.
        real_start: where clips of a real video start. `random`: anywhere that the clip fits, all starts alike, none twice;
            `first`: at its first frame; `all`: side by side, as many as fit, taken in a drawn order; a draw splits what is left
            over between the video's beginning and its end.
        fake_start: the same of a generated video.
        real_min_frames: frames that a real video has to have; None: as many as a clip spans. Shorter ones are passed over.
        fake_min_frames: the same of a generated video. A shorter one is an error.
        size: (height, width) in pixels to which frames are resized before the detector; None: the detector's own resize alone.
        resize: `cover`: scaled to cover `size`, cut at the centre; `stretch`: to `size` whatever the aspect. Both bilinear,
            antialiased and rounded. `stretch_aliased`: as `stretch`, not antialiased.
        real_count: real clips at most; None: no limit.
        fake_count: generated clips at most; None: no limit.
        clips_per_video: real clips of one video at most; None: no limit. A generated video gives one, or with `all` all.
        real_selection: order of real videos. `spread`: natural order of their names; `sorted`: order of their characters, as
            Python sorts strings; `random`: drawn; `balanced`: drawn evenly over the classes that the card says, over all
            videos where it says none. A count below all takes the beginning of that order: of the first two, where classes are
            folders, the first classes alone.
        fake_selection: the same of generated videos.
        seed: of all draws.
        covariance: "unbiased" (1/(N − 1)) or "biased" (1/N).
        split: the part of the real data; `all`: every video; `both`: the training and the test split, each by itself.
        lossless: whether generated videos are to come without loss, as FFV1, PNG frames or arrays; else a warning says so.
        geometry: of the frames of videos and images: `stored`, as they lie in the file; `display`, as a player shows them.
    """

    name: str
    detector: str
    detector_options: dict[str, str | float]
    metrics: tuple[str, ...]
    frames: int
    real_stride: int
    fake_stride: int
    real_start: str
    fake_start: str
    real_min_frames: int | None
    fake_min_frames: int | None
    size: tuple[int, int] | None
    resize: str
    real_count: int | None
    fake_count: int | None
    clips_per_video: int | None
    real_selection: str
    fake_selection: str
    seed: int
    covariance: str
    split: str
    lossless: bool
    geometry: str

    def __post_init__(self) -> None:
        for key, least in _LEAST.items():
            value = getattr(self, key)
            if value is not None and value < least:
                reason = ", for a covariance" if key.endswith("count") else ""
                raise ValueError(f"protocol {self.name!r}: {key} is at least {least}{reason}, got {value}")
        for key, accepted in CHOICES.items():
            if getattr(self, key) not in accepted:
                value = getattr(self, key)
                raise ValueError(f"protocol {self.name!r}: {key} is one of {', '.join(accepted)}, got {value!r}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(
                f"protocol {self.name!r}: size is [height, width], both at least 1, or null, got {list(self.size)}"
            )
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"protocol {self.name!r}: metrics names one or more metrics, each once, got {list(self.metrics)}")
        for option, value in self.detector_options.items():
            if not isinstance(value, str | int | float):
                raise ValueError(f"protocol {self.name!r}: detector_options.{option} is a text or a number, got {value!r}")
        if self.real_start == "random" and self.real_count is None and self.clips_per_video is None:
            raise ValueError(
                f"protocol {self.name!r}: every start of every video would be a clip; limit real_count or clips_per_video"
            )

    def side(self, role: Role) -> Side:
        """What it says of real or of generated videos."""
        rule = ClipRule(self.frames, self.real_stride if role == "real" else self.fake_stride)
        if role == "real":
            least = max(self.real_min_frames or 0, rule.span)
            return Side(rule, self.real_start, least, self.real_count, self.clips_per_video, self.real_selection)
        least, per_video = max(self.fake_min_frames or 0, rule.span), None if self.fake_start == "all" else 1
        return Side(rule, self.fake_start, least, self.fake_count, per_video, self.fake_selection)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all fields; over one that was added later where it is not what held before, see `told_apart_by`."""
        return json_sha256(told_apart_by(self.as_dict()), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Protocol":
        """Take back what `as_dict` gave, also before a field was added.

        Raises:
            ValueError: a field is missing, unknown or unusable.
        """
        try:
            size = values["size"]
            values = {**completed(values), "size": None if size is None else tuple(size)}
            return cls(**{**values, "metrics": tuple(values["metrics"])})
        except (TypeError, KeyError) as error:
            known = ", ".join(each.name for each in fields(cls))
            raise ValueError(f"not the fields of a protocol ({error}); they are {known}") from error

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON has them."""
        size = None if self.size is None else list(self.size)
        return {**asdict(self), "size": size, "metrics": list(self.metrics)}
