"""The entry point of clip-train: answers Ctrl-C from its first line on, while the rest is still being imported."""

import os
import sys
from collections.abc import Sequence

from clip_core.cli.interrupt import exit_on_interrupt


def main(argv: Sequence[str] | None = None) -> int:
    with exit_on_interrupt("clip-train"):
        from clip_core.cli.train_command import run

        code = run(argv)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # One of several processes: the connections of torch.distributed wait for each other when the interpreter takes
        # them down, or abort, if another process has gone first. Everything of ours is written.
        from clip_core.errors import MISTAKE, RunBusyError
        from clip_core.run.writer import LAUNCHER

        said = 0 < code <= RunBusyError.exit_code and LAUNCHER in os.environ
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code + MISTAKE * said)
    return code


if __name__ == "__main__":
    sys.exit(main())
