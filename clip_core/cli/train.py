"""The entry point of clip-train: answers Ctrl-C from its first line on, while the rest is still being imported."""

import sys
from collections.abc import Sequence

from clip_core.cli.interrupt import exit_on_interrupt


def main(argv: Sequence[str] | None = None) -> int:
    with exit_on_interrupt("clip-train"):
        from clip_core.cli.train_command import run

        return run(argv)


if __name__ == "__main__":
    sys.exit(main())
