"""Training: the loop, what it minimises, the engine that shards it, the average and the checkpoints that survive it."""
