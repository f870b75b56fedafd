"""From a trained model to clips: `pretrained` finds and reads it, `trained` knows what it takes, `pipeline` makes clips of it,
with the settings in `sampling`, of `prompts`, out of `noise`. `calibration` measures what savings have to know of it.

`job` makes thousands of them as files, on any number of processes. Sample i is the same whatever the number of processes,
whatever is there already, and however many are asked for: it depends on the settings and on i, and is always denoised in the
same batch. (Bit for bit in float32 on one CPU thread a process; elsewhere as far as the libraries below repeat their own
results.)

It imports `runs`, `savings`, `diffusion`, `models`, `videos`, `sparsity`, `autoencoder`, `text` and
`system`.
"""

from sparsevid.system.errors import ExpectedError


class GenerationError(ExpectedError):
    """Clips that could not be generated or written; the message says why. Files that are there are whole."""
