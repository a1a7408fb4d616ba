"""clip-tui demo: draw shapes, train on them, export the model, and classify a validation image with ONNX Runtime.

In a terminal the app opens on the run, exports when training is done and classifies an image. Leaving it returns to
the shell at once: training and the export go on in sessions of their own. With --plain, or without a terminal, the
command stays in the foreground and prints lines until the end.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_core.errors import BundleError, ClipError, RunError
from clip_core.run.metrics import log_line
from clip_core.run.paths import RunPaths, is_run
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_core.text import printable
from clip_tui.bundle_view import bundle_of, parity_lines, parity_verdict
from clip_tui.commands import near, ours, spelt
from clip_tui.gallery import read_gallery
from clip_tui.starter import Process, is_exporting, start_export, start_trainer
from clip_tui.tail import Tail

# The recipe of the demo, beside --data-file and --run-dir.
# What reaches 99 % on the shapes in the fewest seconds of two cores; docs/benchmarks.md has the measurement.
RECIPE = (
    "--synthetic-count", "3600", "--tokenizer", "bpe", "--model-size", "nano", "--layers", "1", "--width", "128",
    "--batch-size", "32", "--optimizer", "adamw", "--lr", "1.5e-3", "--weight-decay", "1", "--epochs", "5",
    "--eval-every", "50",
)  # fmt: skip
DEMO_FLAGS: list[str] = ["--create-synthetic", *RECIPE]

POLL_SECONDS = 0.3
_INTERRUPTED = 130


@dataclass(frozen=True)
class Demo:
    """One demo: where its images are, and which run it is."""

    folder: Path
    run: Path
    recipe: tuple[str, ...]

    @property
    def data_file(self) -> Path:
        return self.folder / "data" / "dataset.json"

    @property
    def reader(self) -> RunReader:
        return RunReader(self.run)

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.run)


def run_demo(folder: Path, *, plain: bool, ascii_only: bool = False, flags: Sequence[str] = ()) -> int:
    """Do the demo below `folder`; returns its exit code.

    Args:
        flags: flags of clip-train that take the place of those in DEMO_FLAGS, or come on top.
    Raises:
        ClipError: one sentence about the step that failed.
    """
    demo = choose_run(folder, recipe(flags))
    log = Tail(demo.paths.log, first_bytes=0)
    log.new_lines()  # the lines of an earlier trainer are not repeated
    trainer = begin(demo)
    if plain:
        return finish(demo, trainer, log, print_line)
    from clip_tui.autopilot import DemoApp

    DemoApp(demo.run, trainer, ascii_only=ascii_only).run()
    return left(demo, trainer, print_line)


def print_line(line: str) -> None:
    """A line on standard output, whatever it is encoded as."""
    encoding = sys.stdout.encoding or "utf-8"
    print(printable(line).encode(encoding, "replace").decode(encoding), flush=True)


# ---------------------------------------------------------------- which run, and its trainer


def recipe(flags: Sequence[str] = ()) -> tuple[str, ...]:
    """DEMO_FLAGS with `flags` laid over them."""
    values: dict[str, list[str]] = {}
    for part in (*DEMO_FLAGS, *flags):
        if part.startswith("--"):
            name, equals, value = part.partition("=")
            values.pop(name, None)  # so that the values that follow are this one's
            values[name] = [value] if equals else []
        elif values:
            values[next(reversed(values))].append(part)
    return tuple(part for name, rest in values.items() for part in (name, *rest))


def choose_run(folder: Path, flags: tuple[str, ...]) -> Demo:
    """The last demo run, unless it is finished and exported; then a new name."""
    runs = folder / "runs"
    numbered = sorted((_number(path), path) for path in runs.glob("demo*") if _number(path))
    if not numbered:
        return Demo(folder, runs / "demo", flags)
    last, path = numbered[-1]
    if RunReader(path).state() is State.FINISHED and has_bundle(path):
        return Demo(folder, runs / f"demo-{last + 1}", flags)
    return Demo(folder, path, flags)


def _number(path: Path) -> int:
    """`demo` is 1, `demo-7` is 7, anything else 0."""
    found = re.fullmatch(r"demo(?:-([2-9]|[1-9]\d+))?", path.name)
    return 0 if found is None else int(found[1] or 1)


def begin(demo: Demo) -> Process | None:
    """Start or resume the trainer; None where one runs already, or training is finished."""
    state = demo.reader.state() if is_run(demo.run) else None
    if state is State.FINISHED or (state is not None and state.alive):
        return None
    if demo.reader.latest() is not None:
        return start_trainer(demo.run, [], resume=True)
    return start_trainer(demo.run, ["--data-file", str(demo.data_file), *demo.recipe])


# ---------------------------------------------------------------- after the app was left


def left(demo: Demo, trainer: Process | None, say: Callable[[str], None]) -> int:
    """Say what goes on and how to attach to it, or the summary where all is done; returns the exit code.

    Raises:
        RunError: if the trainer has failed.
    """
    state = demo.reader.state()
    running = trainer is not None and trainer.poll() is None
    again = spelt([*ours("clip-tui"), "demo", "--dir", str(demo.folder)])
    if trainer is not None and trainer.returncode:
        raise child_failed("clip-train", trainer.returncode, demo.paths.log)
    if state is State.FINISHED and has_bundle(demo.run) and not is_exporting(demo.run):
        summary(demo, say)
    elif state.alive or (running and state is not State.FINISHED):
        say(f"training goes on in the background: {demo.run}; its log is {demo.paths.log}")
        say(f"attach, pause or stop: {spelt([*ours('clip-tui'), str(demo.run)])}")
        say(f"export and classify when it is done: {again}")
    elif is_exporting(demo.run):
        say(f"the export goes on in the background: {demo.paths.export_log}")
        say(f"classify when it is done: {again}")
    else:
        say(f"{demo.run} is {state.value}; to go on: {again}")
    return 0


# ---------------------------------------------------------------- without the app


def finish(demo: Demo, trainer: Process | None, log: Tail, say: Callable[[str], None]) -> int:
    """Train, export where there is no bundle of the best checkpoint, and print the summary; returns the exit code."""
    say(f"training {demo.run}; its log is {demo.paths.log}; Ctrl-C stops at a checkpoint")
    code = follow_training(demo, trainer, log, say)
    if code:
        return code
    if not has_bundle(demo.run):
        say(f"exporting to {demo.paths.bundle}")
        _wait(start_export(demo.run), "clip-export", demo.paths.export_log)
    summary(demo, say)
    return 0


def follow_training(demo: Demo, trainer: Process | None, log: Tail, say: Callable[[str], None]) -> int:
    """Print the trainer's lines until it ends. Ctrl-C stops it at a checkpoint.

    Raises:
        RunError: if it failed; with its exit code.
    """
    interrupted = False
    while True:
        try:
            ended = trainer.poll() is not None if trainer else not demo.reader.state().alive
            for line in log.new_lines(ended=ended):
                say(line)
            if ended:
                break
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            say("stopping at the next checkpoint; Ctrl-C again leaves at once")
            demo.reader.ask("stop")
    if interrupted:
        again = spelt([*ours("clip-tui"), "demo", "--dir", str(demo.folder)])
        say(f"stopped; to go on: {again}")
        return _INTERRUPTED
    if trainer is not None and trainer.returncode:
        raise child_failed("clip-train", trainer.returncode, demo.paths.log)
    if demo.reader.chosen_checkpoint() is None:
        raise RunError(f"{demo.run} ended without a checkpoint; see {demo.paths.log}.")
    return 0


def _wait(process: Process, name: str, log: Path) -> None:
    code = process.wait()
    if code:
        raise child_failed(name, code, log)


def child_failed(name: str, code: int, log: Path) -> ClipError:
    """A child's failure as one sentence, with the child's exit code (128 + n for signal n, as a shell has it)."""
    said = Tail(log, first_bytes=8192).new_lines(ended=True)
    last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
    error = RunError(f"{name} failed with code {code} ({printable(last, 200)}); see {log}.")
    error.exit_code = code if code > 0 else 128 - code
    return error


def has_bundle(run: Path) -> bool:
    """Whether there is a sound bundle, exported from the best checkpoint."""
    try:
        return bundle_of(run) is not None and RunReader(run).stale_bundle() is None
    except BundleError:
        return False


# ---------------------------------------------------------------- the summary


def summary(demo: Demo, say: Callable[[str], None]) -> None:
    """The model and its scores, the bundle and its parity, an image classified, and what to try next.

    Raises:
        ClipError: if the bundle is not there, or cannot classify.
    """
    manifest = bundle_of(demo.run)
    if manifest is None:
        raise BundleError(f"{demo.paths.bundle} was not written; see {demo.paths.export_log}.")
    checkpoint = demo.reader.chosen_checkpoint()
    say("")
    say(f"trained   {checkpoint}")
    say(f"scores    {_scores(manifest.source.scores)}")
    say(f"bundle    {demo.paths.bundle}")
    say(f"parity    {parity_verdict(manifest)}")
    for line in parity_lines(manifest):
        say(f"          {line}")
    say("")
    _classify(demo, say)
    say("")
    say("next:")
    for command in next_commands(demo):
        say(f"  {spelt(command)}")


def _scores(scores: dict[str, float]) -> str:
    return ", ".join(log_line(scores)) or "none stored"


def _classify(demo: Demo, say: Callable[[str], None]) -> None:
    """A validation image, classified by ONNX Runtime in a process that never imports torch."""
    gallery = read_gallery(demo.run)
    if not gallery.images:
        raise RunError(f"{demo.paths.validation} holds no pairs; train again with: clip-tui demo.")
    image = gallery.images[0]
    asked = ["classification", "--model", str(demo.paths.bundle), "--image", near(Path(image)), "--top-k", "3"]
    command = [sys.executable, "-m", "clip_core.cli.infer", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = printable(done.stderr.strip() or done.stdout.strip(), 300)
        error = RunError(f"clip-infer failed with code {done.returncode} ({said}).")
        error.exit_code = done.returncode
        raise error
    truth = "; ".join(gallery.captions_of[image])
    say(f"image     {near(Path(image))}: {truth} (validation image, classified by ONNX Runtime)")
    say(f"          $ {spelt([*ours('clip-infer'), *asked])}")
    for line in done.stdout.splitlines():
        say(f"          {line}")


def next_commands(demo: Demo) -> list[list[str]]:
    """Three commands that work as they stand, from the directory that the demo was started in."""
    images = _images_folder(demo)
    kept = [part for part in demo.recipe if part != "--create-synthetic"]
    again = ["--data-file", str(demo.data_file), *kept, "--seed", "1", "--run-dir", str(_free(demo.folder / "runs"))]
    return [
        [*ours("clip-tui"), str(demo.folder / "runs")],
        [*ours("clip-infer"), "retrieval", "--model", str(demo.paths.bundle), "--text", "a red circle",
         "--image-dir", str(images), "--top-k", "5"],
        [*ours("clip-train"), *again],
    ]  # fmt: skip


def _free(runs: Path) -> Path:
    """A name for a run that is not taken."""
    return next(path for n in range(1, 1000) if not (path := runs / f"seed-1{'' if n == 1 else f'-{n}'}").exists())


def _images_folder(demo: Demo) -> Path:
    """Where the images of the pair list are."""
    try:
        first = json.loads(demo.data_file.read_text(encoding="utf-8"))[0]["image"]
    except (OSError, ValueError, LookupError, TypeError):
        return demo.data_file.parent
    return (demo.data_file.parent / str(first)).parent
