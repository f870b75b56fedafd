"""Draw docs/method.png: the three segments of the default layout, and the token schedule over denoising.

python docs/draw_method.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from sparsevid.models.presets import build_spec
from sparsevid.runs.build import schedule_from_config
from sparsevid.runs.config import ScheduleConfig
from sparsevid.sparsity.cost import forward_macs

COLOURS = {"P": "#9ecae1", "M": "#fdae6b", "S": "#fdd0a2", "R": "#e6550d", "D": "#3182bd"}
NAMES = {"P": "pooling", "M": "merge", "S": "sparse", "R": "recover", "D": "dense"}
PRESET = "SparseLatte-XL/2"


def draw_layers(axes, spec, grid) -> None:
    """One bar per layer in depth order; its height is the number of tokens that pass through it."""
    dense = spec.dense_grid().tokens
    for index, kind in enumerate(spec.parsed_layout.kinds):
        tokens = grid.tokens if kind in "MS" else dense
        axes.add_patch(Rectangle((index + 0.1, 0), 0.8, tokens, color=COLOURS[kind]))
        axes.text(index + 0.5, dense * 1.02, kind, ha="center", fontsize=8)
    axes.set(xlim=(0, spec.depth), ylim=(0, dense * 1.12), xlabel="layer, bottom to top", ylabel="tokens of a clip")
    axes.set_title(f"{PRESET}: {spec.layout}, sparse grid {grid}", fontsize=10)
    handles = [Rectangle((0, 0), 1, 1, color=COLOURS[kind], label=f"{kind} {NAMES[kind]}") for kind in COLOURS]
    axes.legend(handles=handles, ncol=5, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)


def draw_schedule(axes, spec, schedule) -> None:
    """Sparse tokens per frame, and cost against dense, over diffusion time from noise to data."""
    dense = forward_macs(spec.dense())
    for stage in schedule.stages:
        share = forward_macs(spec, grid=stage.grid) / dense
        width = stage.high - stage.low
        axes.bar(stage.low, stage.grid.h * stage.grid.w, width, align="edge", color=COLOURS["M"], edgecolor="white")
        label = f"{stage.grid.h}×{stage.grid.w}\n{share:.3f}"
        axes.text(stage.low + width / 2, stage.grid.h * stage.grid.w + 1, label, ha="center", fontsize=7)
    top = schedule.stages[0].grid.h * schedule.stages[0].grid.w
    axes.set(xlim=(1, 0), ylim=(0, top * 1.25), xlabel="diffusion time u, noise → data", ylabel="sparse tokens of a frame")
    axes.set_title("token schedule: grid of a frame, cost over dense", fontsize=10)


def main() -> None:
    spec = build_spec(PRESET)
    schedule = schedule_from_config(ScheduleConfig(), spec.dense_grid(), PRESET)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=(3, 2), layout="constrained")
    draw_layers(left, spec, schedule.stages[0].grid)
    draw_schedule(right, spec, schedule)
    figure.savefig(Path(__file__).with_name("method.png"), dpi=110)


if __name__ == "__main__":
    main()
