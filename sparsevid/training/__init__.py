"""Training: the loop, what it minimises, the engine that shards it, the average and the checkpoints that survive it.

A `RunConfig` comes in, and a run's folder with checkpoints and metrics goes out.

It imports any room below.
"""
