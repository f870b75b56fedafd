"""Studies: tables of runs. Rows are variants of one run, each for some seeds; all are trained, sampled and measured alike.

A study's file comes in (`file`), and lines of results go out, one a row and seed (`results`). Read as measurements
(`measurements`), they add up to a table (`table`) and to a static page (`page`), which say the same of them (`effects`, with
the intervals of `intervals`). `plan` says what a row is: its run, what it starts from, what it costs. `run` does the rows
that are open, within a budget, as far as `estimate` tells; `listing` says how far they are. `train` and `measure` are what is
done with a row, `heldout` and `reference` what it is measured by.

It imports any room below.
"""

from sparsevid.system.errors import ExpectedError


class StudyError(ExpectedError):
    """A study that cannot be done, or a row of it; the message says which and why."""
