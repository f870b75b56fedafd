"""Measurements in one run, warm and in turns: forwards (`model`), reading of clips (`data`, `decoders`), training steps
(`training`), sampling (`sampling`), savings, steps and sparse tokens side by side (`savings`), and the evaluator (`distance`,
`evaluator`). `gpu` checks and measures all that a GPU is for, part by part.

Presets or a run's config come in (`candidates`), and out come times (`timing`), memory and counted cost, with what they
were measured on (`report`). What training will need is counted before anything is built (`memory`).

It imports any room below.
"""

# Of `decoders`, which takes seconds to import: what is measured, and for how long at most, in seconds of a process.
DECODER_MEASURES = ("accuracy", "speed", "growth")
DECODER_LIMIT = 300.0
