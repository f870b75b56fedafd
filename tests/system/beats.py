"""A rank that shows signs of life and hangs, or goes on, as it is told: started by `test_heartbeat.py`.

    beats.py SECONDS hang        the main thread waits for what never comes
    beats.py SECONDS collective  rank 0 waits for rank 1 in a collective, and rank 1 for what never comes
    beats.py SECONDS go FILE     collectives until there is a file

Writes `closed` when it is ended by its watch.
"""

import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from sparsevid.system.distributed import any_over_ranks, check_ranks, init_process_group_if_launched, rank, shutdown
from sparsevid.system.heartbeat import Heartbeat

seconds, what = float(sys.argv[1]), sys.argv[2]
init_process_group_if_launched(timeout=600.0)
with Heartbeat(check_ranks(), seconds, "step 3") as heartbeat:
    heartbeat.before_end.append(lambda: print("closed", flush=True))
    print("ready", flush=True)
    if what == "go":
        # Ranks agree on the end: what one sees before the other would let the other wait for it.
        while not any_over_ranks(Path(sys.argv[3]).exists()):
            time.sleep(0.1)
    else:
        if what == "collective" and rank() == 0:
            dist.all_reduce(torch.ones(1))
        threading.Event().wait()
print("done", flush=True)
shutdown()
