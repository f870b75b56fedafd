"""Which layout and which token schedule at which cost: what attention does, what each choice costs in loss, and the choice of
all of them under a budget.

The search is that of a resource-constrained shortest path: `paths` solves it on any acyclic graph, `allocation` states layouts
and schedules as such graphs, on arrays of loss and cost alone; neither needs a model. `measure` fills the arrays from one,
`refine` fine-tunes what they propose.

It imports any room below.
"""

from sparsevid.system.errors import ExpectedError


class SearchError(ExpectedError, ValueError):
    """A search that cannot be done as it is asked for; the message says what can."""
