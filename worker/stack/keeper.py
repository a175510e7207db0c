"""Runs one command that knows no lifeline, and ends it when whoever started this is gone.

Started by `worker.prove` around a broker, with the option that each part with a lifeline is given
at the end: `python -m worker.stack.keeper COMMAND… --lifeline-fd FD`. The supervisor does without,
as it finds a broker that outlived it by its folder.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence

from worker.stack import lifeline


def main(words: Sequence[str]) -> int:
    """Run the command to its end, which SIGTERM brings about; return its exit status."""
    *command, _, fd = words
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    lifeline.watch(int(fd), process.kill)
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
