"""Distillation: a frozen dense teacher beside the objective.

Dimensions: B clips, C latent channels, T frames, N dense tokens a frame, D channels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsevid.runs.config import ConfigError, DistillConfig
from sparsevid.sparsity.layout import Layout
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.initial import differences, open_model

INPUTS = (
    "in_channels",
    "patch_size",
    "num_classes",
    "no_class",
    "text_channels",
    "micro_conditions",
    "learn_sigma",
    "is_video",
)  # what both models take and give
TOKENS = ("depth", "hidden_size")  # what makes tokens of a layer comparable


class Recorder:
    """A model that keeps what passed through its last call, so that an objective need not know of distillation.

    Args:
        model: (x, t, **cond) → output, or with `features` (output, tokens by layer), as `DiffusionTransformer` gives.
        layers: whose tokens are kept.

    Attributes:
        x, t, cond: the noisy latents (B, C, T, H, W), their times (B,), and the conditions.
        output: (B, C', T, H, W).
        features: the tokens (B, T, N, D) by layer.
    """

    x: Tensor
    t: Tensor
    cond: dict[str, Any]
    output: Tensor
    features: dict[int, Tensor]

    def __init__(self, model: Callable[..., Any], layers: tuple[int, ...] = ()) -> None:
        self.model, self.layers = model, layers

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The model's output alone."""
        self.x, self.t, self.cond = x, t, cond
        if self.layers:
            self.output, self.features = self.model(x, t, features=self.layers, **cond)
        else:
            self.output, self.features = self.model(x, t, **cond), {}
        return self.output


class Distillation:
    """The teacher, and the student's distance from it.

    The teacher is a trained dense model, the average of its run. All its tokens are dense at all times, and it is whole on
    every rank.

    Args:
        config: the teacher and the weights of both differences.
        student: spec of the model in training.
        device, dtype: of the teacher; with the student's, an equal student has distance 0.

    Attributes:
        teacher: frozen, in evaluation mode.
        feature_layers: whose tokens the student's forward must return; none without a weight of features.

    Raises:
        ConfigError: no teacher, weights that are negative or both 0, or a weight of features without a sparse module.
        FileNotFoundError: there is no such teacher.
        ValueError: the teacher is not dense, or does not fit the student; the message names the difference.
    """

    def __init__(self, config: DistillConfig, student: ModelSpec, device: torch.device | str, dtype: torch.dtype) -> None:
        self.config, layers = config, boundary_layers(student.parsed_layout)
        if config.teacher is None:
            raise ConfigError("distill.teacher is not given: a checkpoint, an exported folder, or a hub id")
        if min(config.output, config.features) < 0 or config.output == config.features == 0:
            raise ConfigError(
                f"distill.output = {config.output} and distill.features = {config.features}; "
                "accepted are weights from 0 on, not both 0"
            )
        if config.features and not layers:
            raise ConfigError(
                f"distill.features = {config.features}: the layout {student.layout!r} has no sparse module beside "
                "dense layers; accepted is 0"
            )
        self.feature_layers = layers if config.features else ()
        self.teacher = open_model(config.teacher).to(device, dtype).requires_grad_(False)
        theirs = self.teacher.spec
        if theirs.parsed_layout.kinds.strip("D"):
            raise ValueError(f"distill.teacher = {config.teacher}: a teacher is dense, found the layout {theirs.layout!r}")
        if differing := differences(theirs, student, INPUTS + TOKENS if config.features else INPUTS):
            raise ValueError(f"distill.teacher = {config.teacher} does not fit the student: {'; '.join(differing)}")

    def loss(self, output: Tensor, features: Mapping[int, Tensor], x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Weighted mean squared differences from the teacher, in float32.

        Outputs are compared over all channels alike: the prediction has unit scale, and so has the place of a learned variance
        between its bounds. Tokens are compared over all of the clip, and averaged over the layers; stills are compared by their
        output alone.

        Args:
            output: the student's, (B, C', T, H, W).
            features: the student's tokens (B, T, N, D) of `feature_layers`.
            x: the noisy latents (B, C, T, H, W) that both see.
            t: their times (B,), as models take them.
            cond: the student's conditions: labels or text, images, and the sparse grid, which the teacher has no use for.

        Returns:
            (B,), with a gradient to the student alone.
        """
        target, tokens = self._targets(x, t, {name: value for name, value in cond.items() if name != "grid"})
        loss = self.config.output * mean_squared(output, target)  # (B,)
        for layer in self.feature_layers:
            loss = loss + self.config.features / len(self.feature_layers) * mean_squared(features[layer], tokens[layer])
        return loss

    @torch.no_grad()
    def _targets(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> tuple[Tensor, dict[int, Tensor]]:
        recorder = Recorder(self.teacher, self.feature_layers)
        recorder(x.to(next(self.teacher.parameters()).dtype), t, **cond)
        return recorder.output, recorder.features


def mean_squared(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of (B, ...) and (B, ...) for each sample, (B,), computed in float32."""
    return (student.float() - teacher.float()).square().flatten(1).mean(1)


def boundary_layers(layout: Layout) -> tuple[int, ...]:
    """Layers whose output is dense where dense layers and sparse modules (M … R) meet, in depth order.

    These are the last layer before each module, and the first dense layer after it (R itself, if none follows). In
    `2P 4(1M3S1R1D) 2D` they are 1, 7, 13, 19 and 25. Conversion keeps the depth, so a dense model's layers of these indices
    have the same place.
    """
    found = set()
    for segment in layout.segments:
        if segment.sparse:
            follower = layout.kinds[segment.stop : segment.stop + 1]
            found |= {segment.start - 1, segment.stop if follower == "D" else segment.stop - 1}
    return tuple(sorted(found - {-1}))
