"""From a folder of videos to clips for a model: uint8 (C,T,H,W) with label and start, a function of seed, epoch and video
alone.

`tree` finds out what videos a folder holds, `clips` draws from them, `sources` and `latents` say where frames come from,
`loader` brings them in batches; `open` builds all of it for a run.

It imports `runs`, `data/tree`, `videos`, `autoencoder` and `system`.
"""
