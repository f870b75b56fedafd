"""Measurements in one run, warm and in turns: forwards (`model`), reading of clips (`data`, `decoders`), training steps
(`training`), sampling (`sampling`), what samplers make of a checkpoint (`quality`), and the evaluator (`distance`,
`evaluator`).

Presets or a run's config come in, and out come times, memory and counted cost, with what they were measured on.

It imports any room below.
"""
