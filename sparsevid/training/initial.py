"""What a new run starts from: weights and a first stage; and opening a trained model, here or on the hub."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.autoencoder.load import PRETRAINED, load_autoencoder
from sparsevid.autoencoder.pixels import Pixels
from sparsevid.autoencoder.pretrained import PretrainedAutoencoder
from sparsevid.data.clips import ClipDataset, fixed_clips
from sparsevid.evaluation.metrics.likeness import psnr
from sparsevid.generation.pretrained import find_pretrained, load_model, model_folder, run_beside
from sparsevid.models.convert.checkpoint_file import read_checkpoint
from sparsevid.models.convert.conversion import Conversion, ConversionReport, abbreviate
from sparsevid.models.convert.dense_to_sparse import dense_to_sparse
from sparsevid.models.convert.diffusers_folder import find_diffusers, from_diffusers
from sparsevid.models.convert.diffusers_names import NULL_CAPTION
from sparsevid.models.convert.names import LABELS, detect_family
from sparsevid.models.convert.public import from_public
from sparsevid.models.convert.text_files import POSITIONS, from_text_file, text_family
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import AutoencoderConfig, ConfigError, RunConfig, load_config
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.distributed import is_main
from sparsevid.system.logging import get_logger

logger = get_logger(__name__)
HEAD = ("final_layer.linear.weight", "final_layer.linear.bias")
# What weights mean, or how many there are; resolution and length may differ, because positions are computed.
AGREEING = ("depth", "hidden_size", "num_heads", "in_channels", "patch_size", "mlp_ratio", "is_video", "text_channels",
            "shared_modulation", "micro_conditions", "norm_eps", "frequency_shift")  # fmt: skip
# Of no weight of layers. A null caption that is not wanted, or of another number of tokens, is dropped.
FREE = ("text_tokens", "null_caption", "position_base", "position_scale")


def initial_weights(source: str, spec: ModelSpec) -> tuple[dict[str, Tensor], list[str]]:
    """Weights for a new run out of a trained model; every rank may call it, and reads the same.

    A dense source becomes a sparse model, layer i from layer i, if the run's layout is sparse. With another number of classes
    the class embedding is drawn anew, from PyTorch's global generator. With a variance on one side only, the head keeps the
    rows of its prediction, and those of a new variance start at zero, as in a fresh model.

    Args:
        source: a run's folder or one of its checkpoints (its average is taken), an exported folder, a folder of diffusers' DiT,
            PixArt or Latte, or of a pipeline of them, a public file of Latte, DiT, SparseDiT, PixArt-α or Latte-1 (.pt, .pth,
            .safetensors), or a hub id.
        spec: of the run's model.

    Returns:
        All weights of `DiffusionTransformer(spec)` in float32, but no null caption where the source has none of as many tokens;
        and lines for the log: what was dropped or initialised.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a model that differs in more than the above, or a damaged file; the message names the difference.
    """
    weights, origin, report = _read(source, spec)
    _check(source, origin, spec)
    notes = _grouped(report)
    weights = {name: value.float() for name, value in weights.items()}
    if origin.num_classes != spec.num_classes:
        notes += _replace_labels(weights, origin, spec)
    elif origin.labels != spec.labels:
        notes += _resize_labels(weights, spec)
    if origin.learn_sigma != spec.learn_sigma:
        notes += _resize_head(weights, origin, spec)
    notes += _drop_null_caption(weights, origin, spec)
    positions = [(each.position_base, each.position_scale) for each in (origin, spec)]
    if positions[0] != positions[1]:
        notes.append(f"positions (base, scale): {positions[0]} in the source, {positions[1]} here")
    if origin.parsed_layout.kinds != spec.parsed_layout.kinds:
        changed = ("num_classes", "no_class", "learn_sigma", *FREE)
        own = replace(origin, **{name: getattr(spec, name) for name in changed})
        own, target = (replace(each, null_caption=NULL_CAPTION in weights) for each in (own, spec))
        weights, report = dense_to_sparse(weights, own, target)
        notes += _grouped(report)
    elif origin.is_sparse:
        pairs = [(name, getattr(origin, name), getattr(spec, name)) for name in ("transition_positions", "merge_text")]
        notes += [f"{name}: {there} in the source, {here} here" for name, there, here in pairs if there != here]
    return weights, notes


def open_model(source: str) -> DiffusionTransformer:
    """A trained model, on the CPU, in evaluation mode. PyTorch's global generator is left as it was.

    Args:
        source: a run's folder or one of its checkpoints (its average is taken), an exported folder, or a hub id.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: weights that do not fit the model's own config.
    """
    with torch.random.fork_rng(devices=()):  # on the CPU, a model draws weights before it reads them
        return load_model(model_folder(source)).eval()


def open_autoencoder(config: RunConfig, dataset: ClipDataset, resumed: Path | None) -> Autoencoder:
    """The run's first stage: from the checkpoint if resumed, else built, and fitted where it needs no weights.

    Raises:
        ConfigError: `train.init_from` or `distill.teacher` were trained in other latents than this run asks for, or those of a
            teacher are not known and would have to be fitted.
    """
    settings: AutoencoderConfig = config.autoencoder
    if resumed is not None or settings.kind in PRETRAINED:
        opened: Autoencoder
        if resumed is not None:
            opened = load_autoencoder(resumed / "autoencoder", settings.source)
        else:
            opened = PRETRAINED[settings.kind].from_source(settings.source)
        if isinstance(opened, PretrainedAutoencoder):
            opened.tiling, opened.slicing = settings.tiling, settings.slicing
        return opened
    if settings.kind == "pixels":
        return Pixels()
    for source in filter(None, (config.train.init_from, config.distill.teacher)):
        # Weights and a teacher mean something only in the latents that they were trained on.
        if (folder := trained_run(source)) is not None:
            taken = load_autoencoder(folder / "autoencoder", settings.source)
            here = (settings.kind, settings.channels, settings.patch, settings.patch_frames)
            if here != (there := (taken.kind, taken.channels, taken.factor, taken.time_factor)):
                said = ["{}, channels={} patch={} patch_frames={}".format(*each) for each in (here, there)]
                raise ConfigError(f"autoencoder is {said[0]}, and that of {source} is {said[1]}: take the same")
            logger.info("linear autoencoder of %s", source)
            return taken
    if config.distill.teacher:
        raise ConfigError(
            f"distill.teacher = {config.distill.teacher} has no autoencoder beside it, and means nothing in latents that are "
            "fitted anew: take its run, its checkpoint, or an exported folder with config.yaml and autoencoder/"
        )
    keys = fixed_clips(dataset, settings.fit_clips, config.seed)
    clips = torch.stack([dataset[key]["clip"] for key in keys])
    options = {name: getattr(settings, name) for name in ("patch", "patch_frames", "channels", "whitening")}
    fitted = LinearAutoencoder.fit(clips, **options)
    quality = psnr(fitted.decode(fitted.encode(clips)), clips)
    logger.info("linear autoencoder: %d clips, reconstruction PSNR %.1f dB", len(clips), quality)
    return fitted


def encoding_precision(config: RunConfig, device: torch.device) -> str | None:
    """In which precision the run encodes: what it says, or what pays on its device; None where no weights encode."""
    if config.autoencoder.kind not in PRETRAINED or config.data.latents:
        return None
    on_gpu = device.type == "cuda" and config.train.precision == "bfloat16"
    return config.autoencoder.precision or ("bfloat16" if on_gpu else "float32")


def open_encoder(autoencoder: Autoencoder, precision: str | None, device: torch.device) -> Autoencoder:
    """The first stage as training encodes by it: itself, or a copy in another precision.

    Args:
        autoencoder: of the run, in float32, which validates, decodes and is saved; it is moved to the device.
        precision: of `encoding_precision`.
        device: of this rank.
    """
    autoencoder.place(device, torch.float32)
    return copy.deepcopy(autoencoder).place(device, torch.bfloat16) if precision == "bfloat16" else autoencoder


def trained_run(source: str) -> Path | None:
    """What `run_beside` finds of a model, wherever it lies.

    Args:
        source: a run's folder, a checkpoint, a model's folder, a hub id, or a public file.

    Raises:
        FileNotFoundError: nothing there.
    """
    if Path(source).is_file() or find_diffusers(Path(source)):
        return None
    return run_beside(find_pretrained(source))


def unlike(source: str, config: RunConfig, autoencoder: Autoencoder, spec: ModelSpec) -> list[str]:
    """In what the run that trained `source` differs from this one where its weights do not show it.

    Nothing is known of a model without its run's config, such as a public file; that is logged.

    Args:
        source: a run's folder or one of its checkpoints, or anything else that has weights.
        config: of this run, with what its data are.
        autoencoder: of this run.
        spec: of this run's model.
    """
    folder = trained_run(source)
    if folder is None:
        if is_main():
            logger.warning(
                "%s does not say in which latents, and by which objective, it was trained; taken for this run's: "
                "autoencoder %s, objective %s", source, autoencoder.kind, config.objective.kind,
            )  # fmt: skip
        return []
    theirs = load_config(folder / "config.yaml")
    found = []
    if theirs.objective.kind != config.objective.kind:
        found.append(f"it was trained by the objective {theirs.objective.kind}, this run by {config.objective.kind}")
    encoders = theirs.record.text_encoder, config.record.text_encoder
    if None not in encoders and len(set(encoders)) > 1:
        text = "its captions were encoded by another encoder of text (fingerprint {}, here {})".format(*encoders)
        if theirs.text.tokens != config.text.tokens:  # which are in the fingerprint
            text = f"its captions were encoded to {theirs.text.tokens} tokens each, here to {config.text.tokens}"
        found.append(text)
    classes = config.record.classes if spec.num_classes else []
    if theirs.record.classes != classes and len(theirs.record.classes) == len(classes):
        label = next(i for i, (a, b) in enumerate(zip(theirs.record.classes, classes, strict=True)) if a != b)
        found.append(f"label {label} is {theirs.record.classes[label]!r} there and {classes[label]!r} here")
    if theirs.autoencoder.kind != autoencoder.kind:
        found.append(f"its latents are those of the autoencoder {theirs.autoencoder.kind}, this run's of {autoencoder.kind}")
    elif not _same_latents(folder / "autoencoder", autoencoder):
        found.append(f"its latents are those of another autoencoder {autoencoder.kind}, with other weights or settings")
    return found


def _same_latents(folder: Path, autoencoder: Autoencoder) -> bool:
    try:
        saved = load_autoencoder(folder)
    except FileNotFoundError as error:  # one of diffusers, whose weights lie elsewhere
        logger.warning("%s cannot be compared with this run's autoencoder, and is taken for the same: %s", folder, error)
        return True
    return saved.fingerprint() == autoencoder.fingerprint()


def differences(theirs: ModelSpec, mine: ModelSpec, fields: Sequence[str]) -> list[str]:
    """The `fields` in which two models differ, in words: `hidden_size is 64 there and 32 here`."""
    compared = {field: (getattr(theirs, field), getattr(mine, field)) for field in fields}
    return [f"{field} is {there!r} there and {here!r} here" for field, (there, here) in compared.items() if there != here]


def _read(source: str, spec: ModelSpec) -> Conversion:
    """The weights of a source under our names, and the spec that they were trained with."""
    path = Path(source)
    if find_diffusers(path):
        return from_diffusers(path)
    if not path.is_file():
        model = open_model(source)
        weights = model.state_dict()
        return Conversion(weights, model.spec, ConversionReport(len(weights)))
    public = read_checkpoint(path)
    try:
        if text_family(public):
            size = None if POSITIONS in public else spec.input_size
            return from_text_file(public, num_heads=spec.num_heads, input_size=size)
        return from_public(public, **_unsaid(public, spec))
    except ValueError as error:
        raise ValueError(f"{source}: {error} (`sparsevid convert` has options for what a file does not say)") from error


def _unsaid(public: dict[str, Tensor], spec: ModelSpec) -> dict[str, Any]:
    """What a public file of Latte, DiT or SparseDiT does not say of its model, as `from_public` takes it."""
    # The heads must be the run's, and any grid will do, since no weight depends on it.
    sparse = any(name.startswith("dumbbell_blocks.") for name in public)
    options = {"num_heads": spec.num_heads, "sparse_grid": (1, 1, 1) if sparse else None}
    if LABELS in public:  # the run's classes, with or without "no class"; of others no row is kept
        rows, classes = len(public[LABELS]), spec.num_classes
        options["num_classes"] = classes if classes and rows in (classes, classes + 1) else rows
    if "pos_embed" not in public:
        frames = 1 if detect_family(public) == "sparsedit" else spec.input_size[0]
        options["input_size"] = (frames, *spec.input_size[1:])
    return options


def _check(source: str, origin: ModelSpec, spec: ModelSpec) -> None:
    """Raise ValueError where the source's weights are too many, too few, or mean something else in the run's model."""
    fields = (*AGREEING, "residual_upsampling") if origin.is_sparse else AGREEING
    if differing := differences(origin, spec, fields):
        raise ValueError(f"{source} does not fit the run's model: {'; '.join(differing)}")
    kinds = origin.parsed_layout.kinds
    if kinds != spec.parsed_layout.kinds and kinds.strip("D"):
        raise ValueError(
            f"{source} has the layout {origin.layout!r}, which cannot become {spec.layout!r}; "
            f"accepted are the same layers, or a dense model, {spec.depth}D"
        )


def _drop_null_caption(weights: dict[str, Tensor], origin: ModelSpec, spec: ModelSpec) -> list[str]:
    """Drop the source's null caption if it is not to be the run's."""
    if not spec.null_caption:
        if not origin.null_caption:
            return []
        del weights[NULL_CAPTION]
        return [f"dropped, the run's model has no null caption: {NULL_CAPTION}"]
    if origin.null_caption and origin.text_tokens == spec.text_tokens:
        return []
    found = f"one of {origin.text_tokens} tokens" if origin.null_caption else "none"
    weights.pop(NULL_CAPTION, None)
    return [f"null caption: the source has {found}, the run's of {spec.text_tokens} is that of its captions: the empty text"]


def _replace_labels(weights: dict[str, Tensor], origin: ModelSpec, spec: ModelSpec) -> list[str]:
    """Drop the class embedding, and draw one for the classes of `spec`."""
    weights.pop(LABELS, None)
    classes = f"{origin.num_classes} classes in the source, {spec.num_classes} here"
    if not spec.num_classes:
        return [f"dropped, {classes}: {LABELS}"]
    weights[LABELS] = _fresh_labels(spec)
    return [f"initialised (normal), {classes}: {LABELS}"]


def _resize_labels(weights: dict[str, Tensor], spec: ModelSpec) -> list[str]:
    """Keep the rows of the classes; drop that of "no class", or draw one."""
    weights[LABELS] = torch.cat([weights[LABELS][: spec.num_classes], _fresh_labels(spec)[spec.num_classes :]])
    return [f"{'initialised (normal)' if spec.no_class else 'dropped'}, the row of 'no class': {LABELS}"]


def _fresh_labels(spec: ModelSpec) -> Tensor:
    """A class embedding as a whole model of the spec draws it; of all layers one suffices."""
    return DiffusionTransformer(replace(spec, layout="1D", sparse_grid=None)).state_dict()[LABELS]


def _resize_head(weights: dict[str, Tensor], origin: ModelSpec, spec: ModelSpec) -> list[str]:
    """Keep the rows of the prediction; drop those of the variance, or add them as zeros."""
    for name in HEAD:
        rows = rearrange(weights[name], "(p c) ... -> p c ...", c=origin.out_channels)  # p = patch pixels
        rows = rows[:, : spec.in_channels]
        rows = torch.cat([rows, torch.zeros_like(rows)], dim=1) if spec.learn_sigma else rows
        weights[name] = rearrange(rows, "p c ... -> (p c) ...").contiguous()
    change = "initialised (zero)" if spec.learn_sigma else "dropped"
    return [f"{change}, rows of the variance; those of the prediction are kept: {', '.join(HEAD)}"]


def _grouped(report: ConversionReport) -> list[str]:
    """A line for each reason of a conversion's changes."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, change, reason in report.rows():
        groups.setdefault((change, reason), []).append(name)
    return [f"{change}, {reason}: {abbreviate(names)}" for (change, reason), names in groups.items()]
