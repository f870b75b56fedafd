"""A cache of latents: the moments of every frame, written once (`write`) and read in place of frames (`read`)."""
