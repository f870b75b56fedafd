"""Counts what calls computed: multiply–adds, and the share of layers.

Counted as in `sparsity.cost`, for all clips together. Modulation of all layers is computed at every call.
"""

from dataclasses import dataclass

from sparsevid.models.saving import Place
from sparsevid.savings.base import Call
from sparsevid.sparsity.cost import attention_macs, forward_macs, layer_macs, listening_macs, mlp_macs

PARTS_OF_A_LAYER = 2  # attention and MLP


@dataclass
class Tally:
    """What the calls of one or more samplings computed.

    Attributes:
        macs: multiply–adds.
        computed, asked: attentions and MLPs that were computed, and those without a saving, by clips.
    """

    macs: int = 0
    computed: int = 0
    asked: int = 0

    @property
    def share(self) -> float:
        """Of the layers, by their attentions and MLPs, what was computed."""
        return self.computed / self.asked if self.asked else 1.0

    def add_call(self, call: Call, clips: int) -> None:
        """A call that computes all parts of so many clips; what is left out is taken away afterwards."""
        patch = call.spec.patch_size
        size = (call.dense.t, call.dense.h * patch, call.dense.w * patch)
        self.macs += clips * forward_macs(call.spec, size=size, grid=call.sparse, **call.text)
        self.computed += clips * PARTS_OF_A_LAYER * call.spec.depth
        self.asked += clips * PARTS_OF_A_LAYER * call.spec.depth

    def add_left_out_clips(self, call: Call, clips: int) -> None:
        """Clips of a half that is not computed at this call."""
        self.asked += clips * PARTS_OF_A_LAYER * call.spec.depth

    def leave_out(self, place: Place, call: Call, clips: int, begun: bool = False) -> None:
        """A part that was not computed for so many clips; `begun`: of a stack the first layer was."""
        self.macs -= clips * part_macs(place, call, begun)
        if place.point == "stack":
            self.computed -= clips * PARTS_OF_A_LAYER * (call.spec.depth - begun)
        else:
            self.computed -= clips * (PARTS_OF_A_LAYER if place.point == "layer" else 1)

    def change(self, usual: int, now: int, clips: int) -> None:
        """A part that was computed in another form, with its multiply–adds of one clip."""
        self.macs += clips * (now - usual)


def part_macs(place: Place, call: Call, begun: bool = False) -> int:
    """Multiply–adds of a part of one clip, without modulation; of a stack that has begun those after its first layer."""
    spec, grids = call.spec, (call.dense, call.sparse)
    tokens = call.text.get("text_tokens")
    if place.point == "stack":
        return sum(layer_macs(spec, index, *grids, text_tokens=tokens) for index in range(int(begun), spec.depth))
    if place.point == "layer":
        # Dense tokens listen before they are gathered from, whether the M that gathers is computed or not.
        before = place.kind == "M" and spec.merge_text == "dense"
        listening = listening_macs(spec, place.index, *grids, tokens) if before else 0
        return layer_macs(spec, place.index, *grids, text_tokens=tokens) - listening
    return {"attention": attention_macs, "mlp": mlp_macs}[place.point](spec, place.index, *grids)
