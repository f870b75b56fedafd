"""The loss of given weights on fixed clips, noise and times: the same question at every step and for any number of ranks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.data.captions import open_clip_captions
from sparsevid.data.clips import ClipDataset, fixed_clips
from sparsevid.data.sources import VideoFrames
from sparsevid.data.tree.cards import load_card
from sparsevid.data.tree.manifest import Manifest
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import RunConfig
from sparsevid.sparsity.schedule import TokenSchedule, constant_schedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.distributed import gather_objects, rank, sum_over_ranks, world_size
from sparsevid.system.seeding import Purpose, keyed_generator
from sparsevid.system.transfer import to_device
from sparsevid.text.encoder import EncodedText
from sparsevid.training.objective import Objective, told


class FixedClip(NamedTuple):
    """A clip to validate on, on the CPU.

    Attributes:
        number: among those of all ranks.
        latents: (C, T, H, W).
        label: -1 for none.
        text: features of its prompt (L, C), of data with captions.
        text_mask: bool (L,), which of its tokens are heard.
        sizes: (3,) of the picture, as the model's micro-conditions.
        caption: the prompt.
    """

    number: int
    latents: Tensor
    label: int
    text: Tensor | None = None
    text_mask: Tensor | None = None
    sizes: Tensor | None = None
    caption: str = ""


def condition_of(spec: ModelSpec, clips: Sequence[FixedClip], device: torch.device | str) -> dict[str, Tensor]:
    """What a model is told of fixed clips beside latents and times, on a device."""
    batch = {"label": torch.tensor([clip.label for clip in clips])}
    for name in ("text", "text_mask", "sizes"):
        values = [getattr(clip, name) for clip in clips]
        batch |= {} if values[0] is None else {name: torch.stack(values)}
    return {name: to_device(value, device) for name, value in told(spec, batch).items()}


def validation_dataset(config: RunConfig, manifest: Manifest, dataset: ClipDataset) -> ClipDataset:
    """Clips of the validation split, by the rule of the training clips, not mirrored, without stills. All ranks call it.

    Args:
        config: of the run, with what the card answers filled in.
        manifest: of the whole tree.
        dataset: what the run trains on. Where the splits are the same, frames come from its source, a latent cache for example;
            another split is read from its videos.

    Raises:
        ValueError: there is no such split, none of its videos is as long as a clip, or as `open_clip_captions`.
    """
    split, data = config.monitor.validate_split, config.data
    selected, source, captions = dataset.manifest, dataset.source, dataset.captions
    if split is not None and split != data.split:
        selected, source = manifest.select(split), VideoFrames(manifest.root, data.clip().size, data.decoder)
        if data.captions is not None:
            rules = load_card(data.card, data.card_options).captions.rules()
            captions, selected, _, _ = open_clip_captions(data.captions, config.text, rules, selected, manifest)
    return ClipDataset(selected, dataset.rule, source, seed=dataset.seed, captions=captions)


def fixed_prompts(dataset: ClipDataset, count: int) -> tuple[list[str], EncodedText]:
    """The captions of the first `count` fixed clips, of data with captions, and their features; nothing is decoded.

    Args:
        dataset: of the validation split.
        count: from 1.

    Raises:
        ValueError: data without captions.
    """
    keys, captions = fixed_clips(dataset, count, dataset.seed), dataset.captions
    videos = [dataset.videos[index] for _, index in keys]
    generators = [keyed_generator(Purpose.CAPTION, dataset.seed, *key) for key in keys]
    if captions is None:
        raise ValueError("the clips have no captions to take prompts from")
    places = [captions.draw(video, generator) for video, generator in zip(videos, generators, strict=True)]
    text, mask = captions.read(videos, places)
    return [captions.texts[place] for place in places], EncodedText(text, mask, (0,) * count)


@torch.no_grad()
def fixed_latents(dataset: ClipDataset, autoencoder: Autoencoder, count: int, device: torch.device) -> list[FixedClip]:
    """This rank's share of `count` clips: those whose number is its own modulo the number of ranks.

    Args:
        dataset: of the validation split.
        autoencoder: on `device`.
        count: clips of all ranks.
        device: where clips are encoded, one by one.
    """
    keys = fixed_clips(dataset, count, dataset.seed)
    to_latents = autoencoder.latents if dataset.source.moments else autoencoder.encode
    share = []
    for number in range(rank(), count, world_size()):
        sample = dataset[keys[number]]
        latents = to_latents(sample["clip"][None].to(device))[0]
        text, mask, sizes = sample.get("text"), sample.get("text_mask"), sample.get("sizes")
        caption = dataset.captions.texts[int(sample["caption"])] if dataset.captions else ""
        share.append(FixedClip(number, latents.float().cpu(), int(sample["label"]), text, mask, sizes, caption))
    return share


@torch.no_grad()
def validation_loss(
    model: DiffusionTransformer,
    objective: Objective,
    schedule: TokenSchedule | None,
    clips: Sequence[FixedClip],
    *,
    seed: int,
    batch: int,
    ask: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The mean loss over fixed clips, each with one fixed time and noise in each stage. All ranks call it together.

    Args:
        model: the same weights on every rank.
        objective: of the run.
        schedule: its token schedule; None for a dense model, which has one stage.
        clips: this rank's share.
        seed: of times and noise, which are functions of (seed, stage, number of the clip).
        batch: clips of a forward; losses do not depend on it beyond rounding.
        ask: called before each batch, as often on all ranks; it ends the validation by raising.

    Returns:
        `loss_stage_i`, the mean over the clips of all ranks, of each stage that the objective trains; and `loss`, their mean
        by the probabilities of the stages: what training minimises.
    """
    stages = (schedule or constant_schedule((1, 1, 1))).stages
    masses = [objective.times.mass(stage) for stage in stages]
    sums = torch.zeros(len(stages), dtype=torch.float64)
    device = next(model.parameters()).device
    most = max(gather_objects(len(clips)))  # a rank with fewer makes as many turns
    for index, stage in enumerate(stages):
        if not masses[index]:
            continue  # an interval between two discrete timesteps holds no time to ask about
        grid = {} if schedule is None else {"grid": stage.grid}
        for first in range(0, most, batch):
            ask()
            chosen = clips[first : first + batch]
            if not chosen:
                continue
            generators = [keyed_generator(Purpose.VALIDATION, seed, index, clip.number) for clip in chosen]
            u = torch.cat([objective.times.sample(stage, 1, generator) for generator in generators])
            pairs = zip(chosen, generators, strict=True)
            noise = torch.stack([torch.randn(clip.latents.shape, generator=generator) for clip, generator in pairs])
            x0 = torch.stack([clip.latents for clip in chosen])
            condition = grid | condition_of(model.spec, chosen, device)
            losses = objective.loss(model, x0.to(device), u.to(device), noise.to(device), **condition)
            sums[index] += losses.double().sum().cpu()
    totals = sum_over_ranks(torch.cat([sums, torch.tensor([len(clips)], dtype=torch.float64)]))
    means = (totals[:-1] / totals[-1]).tolist()
    values = {f"loss_stage_{index}": mean for index, mean in enumerate(means) if masses[index]}
    return {"loss": sum(m * mean for m, mean in zip(masses, means, strict=True)) / sum(masses), **values}
