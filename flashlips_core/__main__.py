"""``python -m flashlips_core``."""

from __future__ import annotations

import sys

from .system.terminal import exit_code, say, steady_streams, stoppable


def run() -> int:
    """The command line as a process of its own."""
    steady_streams()
    with stoppable(is_last=True):
        try:
            from .cli import main  # takes seconds: a stop in the middle of it is no traceback either

            return main()
        except KeyboardInterrupt as stop:
            say(sys.stderr, "\nStopped.")
            return exit_code(stop)
        except (MemoryError, ImportError, OSError, RuntimeError) as error:
            if not any(word in str(error).lower() for word in ("memory", "map segment", "alloc")) and str(error):
                raise
            say(sys.stderr, "Out of memory before the work began; close other programs or allow this one more (ulimit -v).")
            return 2


if __name__ == "__main__":
    sys.exit(run())
