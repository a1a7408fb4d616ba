"""The files of a run directory; nothing else in the project spells their names. Described in docs/run-directory.md."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from clip_core.files import read_json, replaced

MANIFEST = "manifest.json"  # in a bundle
META = "meta.json"  # in a checkpoint


def images_of(findings: Path) -> Path:
    """The folder with small images of remote shards, of a file that `clip-data check --findings` writes."""
    return findings.with_name(f"{findings.name}.images")


@dataclass(frozen=True)
class RunPaths:
    """The files of the run directory `root`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def requests(self) -> Path:
        return self.root / "requests"

    @property
    def probes(self) -> Path:
        return self.root / "probes"

    @property
    def validation(self) -> Path:
        return self.root / "validation.json"

    @property
    def pair_hashes(self) -> Path:
        return self.root / "pairs.npy"

    @property
    def stream(self) -> Path:
        return self.root / "stream.json"

    @property
    def left_out(self) -> Path:
        return self.root / "left_out.json"

    @property
    def validation_images(self) -> Path:
        return self.root / "validation"

    @property
    def flags(self) -> Path:
        return self.root / "flags.json"

    @property
    def findings(self) -> Path:
        return self.root / "findings.jsonl"

    @property
    def findings_images(self) -> Path:
        return images_of(self.findings)

    @property
    def check_log(self) -> Path:
        return self.root / "check.log"

    @property
    def label(self) -> Path:
        return self.root / "label.json"

    @property
    def log(self) -> Path:
        return self.root / "train.log"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def latest(self) -> Path:
        return self.root / "latest.json"

    @property
    def best(self) -> Path:
        return self.root / "best.json"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer.json"

    @property
    def plot(self) -> Path:
        return self.root / "training_results.png"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def initial_weights(self) -> Path:
        return self.root / "init.safetensors"

    @property
    def blends(self) -> Path:
        return self.root / "blends.json"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def bundle_manifest(self) -> Path:
        """Of the bundle that is read: of the old one, where an export was killed before the new one took its place."""
        old = replaced(self.bundle) / MANIFEST
        return old if old.exists() and not os.path.lexists(self.bundle) else self.bundle / MANIFEST

    @property
    def export_status(self) -> Path:
        return self.root / "export.json"

    @property
    def export_log(self) -> Path:
        return self.root / "export.log"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def export_lock(self) -> Path:
        return self.root / ".export.lock"

    def probe(self, step: int) -> Path:
        return self.probes / f"{step:07d}.json"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / checkpoint_name(step)


def checkpoint_name(step: int) -> str:
    """`step_0000180`; seven digits, so that names sort as steps do."""
    return f"step_{step:07d}"


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory: a folder for checkpoints, with a run's status or configuration beside it.

    A run that failed before its first step has no configuration. A folder that only looks alike, such as a dataset's
    or a downloaded model's, has neither.
    """
    paths = RunPaths(path)
    if not paths.checkpoints.is_dir():
        return False
    return "state" in (read_json(paths.status) or ()) or "schema" in (read_json(paths.config) or ())


def find_runs(root: Path, depth: int = 3, known: Collection[Path] = ()) -> list[Path]:
    """Run directories in `root` (or `root` itself), latest first.

    Args:
        known: folders that were run directories when they were read last; those that are still there are not read.
    """
    if is_run(root):
        return [root]
    found: list[Path] = []
    folders = [root]
    for _ in range(depth):
        below = [folder for parent in folders for folder in _subfolders(parent)]
        runs = {folder for folder in below if folder in known or is_run(folder)}
        found += runs
        folders = [folder for folder in below if folder not in runs]
    return sorted(found, key=_time_of, reverse=True)


def _subfolders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return [path / entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []


def _time_of(run: Path) -> float:
    """When the run was last written to."""
    paths = RunPaths(run)
    for path in (paths.status, paths.config):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0
