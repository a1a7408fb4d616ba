"""A mistyped command line answered with what was meant: synonyms of other tools, then the closest spelling."""

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from cyclopts import App, CycloptsError, MissingArgumentError, UnknownCommandError, UnknownOptionError
from cyclopts.exceptions import UnusedCliTokensError

_CLOSE = 0.6  # of difflib
_MOST = 4  # suggestions
_LISTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".tar", ".txt")

# What other tools call a flag: ours, of which the command's own ones are meant.
FLAG_SYNONYMS: dict[str, tuple[str, ...]] = {
    "learning-rate": ("lr",),
    "learningrate": ("lr",),
    "max-lr": ("lr",),
    "batch": ("batch-size",),
    "bs": ("batch-size",),
    "b": ("batch-size",),
    "per-device-train-batch-size": ("batch-size",),
    "epoch": ("epochs",),
    "e": ("epochs",),
    "n-epochs": ("epochs",),
    "num-epochs": ("epochs",),
    "num-train-epochs": ("epochs",),
    "max-steps": ("epochs",),
    "steps": ("epochs",),
    "time": ("minutes",),
    "wd": ("weight-decay",),
    "warmup-steps": ("warmup",),
    "warmup-ratio": ("warmup",),
    "clip-grad": ("grad-clip",),
    "max-grad-norm": ("grad-clip",),
    "optim": ("optimizer",),
    "amp": ("precision",),
    "bf16": ("precision",),
    "fp16": ("precision",),
    "dtype": ("precision",),
    "gpu": ("device",),
    "cuda": ("device",),
    "cpu": ("device",),
    "num-workers": ("workers",),
    "threads": ("workers",),
    "j": ("workers",),
    "random-seed": ("seed",),
    "out": ("run-dir", "out"),
    "o": ("run-dir", "out"),
    "output": ("run-dir", "out"),
    "out-dir": ("run-dir", "out"),
    "output-dir": ("run-dir", "out"),
    "save-dir": ("run-dir", "out"),
    "logs": ("run-dir",),
    "name": ("run-dir",),
    "dataset": ("data", "file"),
    "data": ("file",),
    "d": ("data",),
    "data-dir": ("data",),
    "data-path": ("data",),
    "input": ("data", "image", "file"),
    "train-data": ("data",),
    "train-file": ("data",),
    "train-data-dir": ("data",),
    "csv": ("data", "file"),
    "json-file": ("data", "file"),
    "images": ("image", "image-dir", "image-root"),
    "img": ("image",),
    "i": ("image",),
    "folder": ("image-dir", "data"),
    "dir": ("image-dir",),
    "gallery": ("image-dir",),
    "val-data": ("val-file",),
    "validation-file": ("val-file",),
    "eval-data": ("val-file",),
    "test-data": ("val-file",),
    "val-split": ("val-fraction",),
    "val-frac": ("val-fraction",),
    "csv-img-key": ("image-column",),
    "csv-caption-key": ("caption-column",),
    "img-key": ("image-column",),
    "text-column": ("caption-column",),
    "model": ("model-size", "init-model"),
    "arch": ("model-size", "init-model"),
    "checkpoint": ("model", "init"),
    "ckpt": ("model", "init"),
    "weights": ("model", "init"),
    "run": ("model", "run-dir"),
    "pretrained": ("init",),
    "finetune": ("init",),
    "resume-from": ("resume",),
    "resume-from-checkpoint": ("resume",),
    "continue": ("resume",),
    "save-every": ("checkpoint-every",),
    "save-frequency": ("checkpoint-every",),
    "val-every": ("eval-every",),
    "lora-rank": ("lora",),
    "lora-r": ("lora",),
    "lock-image": ("lock",),
    "lock-text": ("lock",),
    "freeze": ("lock",),
    "resolution": ("image-size",),
    "img-size": ("image-size",),
    "query": ("text", "texts"),
    "prompt": ("text", "texts", "template"),
    "caption": ("text", "texts"),
    "captions": ("texts",),
    "text": ("texts",),
    "labels": ("classes",),
    "k": ("top-k",),
    "n": ("top-k", "count"),
    "num": ("count",),
    "provider": ("backend",),
}
COMMAND_SYNONYMS = {
    "classify": "classification",
    "zero-shot": "classification",
    "zeroshot": "classification",
    "predict": "classification",
    "label": "classification",
    "similar": "similarity",
    "compare": "similarity",
    "score": "similarity",
    "search": "retrieval",
    "find": "retrieval",
    "retrieve": "retrieval",
    "text-to-image": "retrieval",
    "image-to-text": "text-retrieval",
    "caption": "text-retrieval",
    "validate": "check",
    "verify": "check",
    "inspect": "info",
    "show": "info",
    "stats": "info",
    "export": "convert",
    "generate": "synthetic",
    "create": "synthetic",
    "create-synthetic": "synthetic",
}


def explain_usage(app: App, argv: Sequence[str], error: CycloptsError) -> str | None:
    """One sentence that names the flag or command that was meant; None where the parser's own sentence is better."""
    command, chain = _called(app, argv)
    if command is None:
        return _unknown_command(app, argv[0])
    if isinstance(error, UnknownOptionError):
        return _unknown_flag(app, chain, error.token.keyword or error.token.value or "")
    if isinstance(error, UnknownCommandError | UnusedCliTokensError):
        return _unexpected(app, chain, argv, list(error.unused_tokens or ()))
    if isinstance(error, MissingArgumentError):
        return _missing(app, chain, error)
    return None


def as_typed(app: App, argv: Sequence[str], sentence: str) -> str:
    """The sentence with every flag in the spelling that was typed: --data-file for --data, --image_root."""
    typed = {word.partition("=")[0] for word in argv if word.startswith("--")}
    _, chain = _called(app, argv)
    for names in _spellings(app, chain):
        used = next((word for word in argv if word.partition("=")[0].replace("_", "-") in names), None)
        if used is not None:
            spelt = used.partition("=")[0]
            for name in sorted({*names} - typed, key=len, reverse=True):
                sentence = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", spelt, sentence)
    return sentence


def _called(app: App, argv: Sequence[str]) -> tuple[App | None, list[str]]:
    """The app or its command that a command line names, and the command's name; None for a command that is unknown."""
    commands = _commands(app)
    if argv and argv[0] in commands:
        return app[argv[0]], [argv[0]]
    takes_words = any(not name.startswith("-") for names in _spellings(app, []) for name in names)
    if argv and commands and not argv[0].startswith("-") and not takes_words:
        return None, []
    return app, []


def _commands(app: App) -> list[str]:
    return [name for name in app if not name.startswith("-")]


def _spellings(app: App, chain: Sequence[str]) -> list[tuple[str, ...]]:
    """The names of each flag of a command; none for an app that only has commands."""
    called = app[chain[0]] if chain else app
    if called.default_command is None:
        return []
    return [argument.names for argument in called.assemble_argument_collection() if argument.names != ("*",)]


def _flags(app: App, chain: Sequence[str]) -> list[str]:
    own = [name for names in _spellings(app, chain) for name in names if name.startswith("--")]
    return [*own, "--help"]


def closest_command(app: App, word: str) -> str | None:
    """The command that a word may stand for: a synonym, or the closest spelling."""
    known, plain = _commands(app), word.casefold().replace("_", "-")
    synonym = COMMAND_SYNONYMS.get(plain)
    if synonym in known:
        return synonym
    return next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=_CLOSE)), None)


def _unknown_command(app: App, word: str) -> str:
    known, first = _commands(app), shlex.quote(word)
    meant = closest_command(app, word)
    if meant is None and "check" in known and _is_data(word):
        meant = f"check {first}"
    if meant:
        return f"{first} is not a command; did you mean {meant}?"
    return f"{first} is not a command; the commands are {', '.join(known)}."


def _unknown_flag(app: App, chain: Sequence[str], word: str) -> str:
    word = word.partition("=")[0]
    meant = closest(word, _flags(app, chain))
    if meant and meant != ["--help"]:
        return f"unknown option {word}; did you mean {_or(meant)}?"
    others = [name for name in _commands(app) if [name] != list(chain) and word in _flags(app, [name])]
    called = " ".join([app.name[0], *chain])
    if others:
        return f"{word} is an option of {app.name[0]} {_or(others)}, not of {called}."
    return f"unknown option {word}; {called} --help lists the options."


def _unexpected(app: App, chain: Sequence[str], argv: Sequence[str], words: Sequence[str]) -> str | None:
    """Words that no flag takes."""
    flags = _flags(app, chain)
    called = " ".join([app.name[0], *chain])
    first = shlex.quote(words[0])
    if len(words) > 1 and all(word.lower().endswith(".tar") for word in words):
        return f"{first} is not expected; put a pattern of shards in quotes, or name their folder."
    spaced = _with_spaces(argv, words)
    if spaced is not None:
        return f"{first} is not expected; put quotes around a path with spaces: {shlex.quote(spaced)}."
    if "--resume" in flags and (Path(words[0]) / "config.json").is_file():
        return f"{first} has no option before it; did you mean --resume --run-dir {first}?"
    if "--data" in flags and _is_data(words[0]):
        return f"{first} has no option before it; did you mean --data {first}?"
    meant = closest(words[0], flags)
    if meant:
        return f"{first} has no option before it; did you mean {_or(meant)}?"
    return f"{first} is not expected; {called} --help lists what is."


def _missing(app: App, chain: Sequence[str], error: MissingArgumentError) -> str | None:
    """An argument that was left out, perhaps because its flag was mistyped."""
    words, argument = list(error.unused_tokens or ()), error.argument
    flags, called = _flags(app, chain), " ".join([app.name[0], *chain])
    unknown = next((word for word in words if word.startswith("-") and not _is_known(word, flags)), None)
    if unknown is not None:
        return _unknown_flag(app, chain, unknown)
    if argument is None or any(word.partition("=")[0] in argument.names for word in words):
        return None
    if not argument.field_info.is_keyword_only:
        return f"{argument.name.removeprefix('--').upper()} is missing; see {called} --help."
    if words and not words[0].startswith("-"):
        return f"{argument.name} is missing; did you mean {argument.name} {shlex.quote(words[0])}?"
    return f"{argument.name} is missing; see {called} --help."


def closest(word: str, flags: Iterable[str]) -> list[str]:
    """The flags that a word may stand for: a synonym, those with all its parts, or the closest spelling."""
    known = [flag.removeprefix("--") for flag in flags]
    plain = word.lstrip("-").casefold().replace("_", "-")
    if plain in known:
        return [f"--{plain}"]
    synonyms = [flag for flag in FLAG_SYNONYMS.get(plain, ()) if flag in known]
    if synonyms:
        return [f"--{synonyms[0]}"]
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.8)
    parts = [flag for flag in known if set(plain.split("-")) <= set(flag.split("-"))]
    if not near:
        parts = parts or [
            flag for flag in known if len(plain) > 3 and difflib.get_close_matches(plain, flag.split("-"), cutoff=0.8)
        ]
        near = parts if 0 < len(parts) <= _MOST else difflib.get_close_matches(plain, known, n=1, cutoff=_CLOSE)
    return [f"--{flag}" for flag in near]


def _is_known(word: str, flags: Sequence[str]) -> bool:
    return word.partition("=")[0].replace("_", "-") in flags


def _is_data(word: str) -> bool:
    return word.lower().endswith(_LISTS) or Path(word).exists() or "://" in word


def _with_spaces(argv: Sequence[str], words: Sequence[str]) -> str | None:
    """An existing path that was typed without quotes and so came as several words."""
    at = list(argv).index(words[0]) if words[0] in argv else 0
    joined = " ".join([*argv[max(at - 1, 0) : at], *words])
    return joined if at and Path(joined).exists() else None


def _or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
