"""``python -m mec`` and ``mec`` are the same command."""

import os
import sys
from typing import NoReturn

from mec.cli.signals import exit_preempted_at_sigterm


def entry() -> NoReturn:
    """Run the command and end the process."""
    exit_preempted_at_sigterm(sys.argv[1:])  # before the imports, which take seconds
    try:
        from mec.cli.main import entry as run
    except KeyboardInterrupt:
        print("mec: interrupted", file=sys.stderr)
        os._exit(130)
    run()


if __name__ == "__main__":
    sys.argv[0] = "mec"  # results record the command
    entry()
