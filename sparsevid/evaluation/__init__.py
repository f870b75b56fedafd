"""Evaluation in three steps: a detector turns clips into features, features go to a file, two files give a distance.

Folders of videos, data set cards and generators come in, with a protocol that settles every choice; a record of scores goes
out, with all that they depend on. `evaluate` does the steps, `clips` chooses what is read, `detectors`, `metrics` and
`protocols` are what can be chosen. `features` are files of them, `comparison` makes a `record` of two, `plot` and `pictures`
show it; `selftest`, `sensitivity` and `sensitivity_table` (by `distortions`) try the evaluator itself, `effects` what a
protocol settles. `likeness` compares two folders pixel by pixel, `prompts` are what clips were to show.

It imports `generation`, `data`, `models`, `data/tree`, `videos`, `text` and `system`.
"""
