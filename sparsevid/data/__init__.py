"""From a folder of videos to clips for a model: uint8 (C,T,H,W) with label and start, a function of seed, epoch and video
alone.

`tree` finds out what videos a folder holds and what a clip of them is, `clips` draws clips (`turns`: evenly over classes),
`captions` what they are told, `sources`, `whole` (every frame, in memory) and `latents` say where frames come from,
`transforms` what is done to them, `loader` brings them in batches out of `workers`, and `feed` those to a device; `open` builds
all of it for a run. `made` makes data sets.

It imports `runs`, `data/tree`, `videos`, `autoencoder`, `text` and `system`.
"""
