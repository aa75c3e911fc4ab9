"""One of two processes in a step of three seconds, or one of a minute; ends after it when that was wished.

It leaves two files in the folder that it is given: one when it has begun, and one when it knows of the wish.
"""

import os
import signal
import sys
import time
from pathlib import Path

from studio.core.model.stop_wish import is_wished

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / f"{os.environ['RANK']}.begun").touch()
end = time.monotonic() + seconds
while time.monotonic() < end:
    if is_wished():
        (folder / f"{os.environ['RANK']}.knows").touch()
    time.sleep(0.05)
sys.exit(0 if is_wished() else "nobody wished it to stop")
