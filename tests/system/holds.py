"""`python holds.py FOLDER beside:FOLDER …`: a process that has the right to write into folders, until it is killed."""

import sys
import time
from pathlib import Path

from sparsevid.system.locks import FolderLock

locks = [FolderLock(Path(each.removeprefix("beside:")), beside=each.startswith("beside:")) for each in sys.argv[1:]]
print("held", flush=True)
time.sleep(600)
