"""A tokenizer.json from a stranger ends in one sentence: no crash of the process, no panic, no endless work."""

import copy
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_core.data.published_tokenizer import find_published_tokenizer
from clip_core.data.tokenizer import END, Tokenizer, train_characters
from clip_core.data.tokenizer_file import library_errors
from clip_core.errors import TokenizerError
from clip_core.inference.encoder import check_tokenizer

GOOD: dict[str, Any] = json.loads(train_characters(["a red circle", "xyz!"], 24)._inner.to_str())
WORDS = GOOD["model"]["vocab"]
TEXTS = ["a" * 40 + "!", "x" * 40, "a red circle ☃"]


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def nested(times: int) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [nested(times - 1) if times else {"type": "Lowercase"}]}


def set_ids(said: dict[str, Any], number: int) -> None:
    said["post_processor"]["special_tokens"][END]["ids"] = [number]


def unigram(said: dict[str, Any], unknown: int | None) -> None:
    said["model"] = {"type": "Unigram", "unk_id": unknown, "vocab": [["a", 0.0], ["b", -1.0], ["c", -1.0]]}


def word_piece(said: dict[str, Any]) -> None:
    said["model"] = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": WORDS,
    }  # fmt: skip


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "growing": lambda d: d.update(
        normalizer={"type": "Sequence", "normalizers": [replace({"String": "a"}, "a" * 100)] * 8}
    ),
    "growing at every place": lambda d: d.update(normalizer=replace({"Regex": ""}, "a" * 10_000)),
    "a character map whose length is a lie": lambda d: d.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA////AAAA"}
    ),
    "no base64": lambda d: d.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "\x1b[31m"}),
    "backtracking words": lambda d: d.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a|aa)+b"}, "behavior": "Isolated", "invert": False}
    ),
    "backtracking normaliser": lambda d: d.update(normalizer=replace({"Regex": "(x+x+)+y"}, "")),
    "WordPiece without its unknown token": word_piece,
    "words without their unknown token": lambda d: d["model"].update(unk_token="[gone]"),
    "unigram without an unknown token": lambda d: unigram(d, None),
    "unigram with one outside": lambda d: unigram(d, 10**6),
    "an end token that no word has": lambda d: set_ids(d, 10**6),
    "a frame that is not defined": lambda d: d["post_processor"].update(special_tokens={}),
    "ids given twice": lambda d: d["model"].update(vocab=dict.fromkeys(WORDS, 5) | {END: 1, "<|startoftext|>": 2}),
    "an id beyond any table": lambda d: WORDS and d["model"].update(vocab=WORDS | {"x": 4_000_000_000}),
    "nested": lambda d: d.update(normalizer=nested(30)),
    "no room": lambda d: d["truncation"].update(max_length=2),
    "a context of a billion": lambda d: (
        d["truncation"].update(max_length=10**9),
        d["padding"].update(strategy={"Fixed": 10**9}),
    ),
    "a name with an escape": lambda d: d["model"].update(type="\x1b]0;owned\x07\u202e"),
}


def use(path: Path) -> None:
    tokenizer = Tokenizer.load(path)
    tokenizer.encode(TEXTS)
    check_tokenizer(tokenizer, vocab_size=len(WORDS), end_token=1, context_length=24)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.fault("hostile tokenizer")
def test_a_hostile_file_is_one_sentence(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = copy.deepcopy(GOOD)
    HOSTILE[name](said)
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    started = time.process_time()
    with pytest.raises(TokenizerError) as caught:
        use(tmp_path / "tokenizer.json")
    assert time.process_time() - started < 20
    assert str(caught.value).isprintable()
    assert capfd.readouterr().err == ""  # not a line of the library's own


NO_TOKENIZERS = [
    "[" * 100_000,
    '{"normalizer": ' * 50_000,
    '{"\\u0070recompiled_charsmap": "AAAA////AAAA", "normalizer": {"precompiled_charsmap": "AAAA////AAAA"}}',
    "\ufeff{}",
    '{"version": "1.0", "model": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("content", NO_TOKENIZERS, ids=range(len(NO_TOKENIZERS)))
@pytest.mark.fault("hostile tokenizer")
def test_what_is_no_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError):
        Tokenizer.load(tmp_path / "tokenizer.json")


@pytest.mark.fault("hostile tokenizer")
def test_a_text_that_makes_a_pattern_panic_later_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = copy.deepcopy(GOOD)
    said["normalizer"] = replace({"Regex": "(ab|ba|a|b)+c"}, "")
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")  # as no text of the trial is of this kind
    os.write(2, b"before\n")
    with pytest.raises(TokenizerError, match="cannot read these captions"):
        tokenizer.encode(["ab" * 40])
    os.write(2, b"after\n")
    assert tokenizer.encode(["a red circle"]).shape[0] == 1
    assert capfd.readouterr().err == "before\nafter\n"


def test_what_others_write_while_a_tokenizer_reads_is_only_late(capfd: pytest.CaptureFixture[str]) -> None:
    with library_errors("x"), library_errors("y"):
        os.write(2, b"of another thread\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "of another thread\n"


def test_a_file_is_tried_once_and_one_that_was_written_here_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(GOOD | {"version": "1.0"}, indent=1))
    Tokenizer.load(path)
    train_characters(["what no other test has"], 24).save(tmp_path / "own.json")
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    Tokenizer.load(path)
    Tokenizer.load(tmp_path / "own.json")
    path.write_text(json.dumps(GOOD, indent=7))
    with pytest.raises(TokenizerError, match="could not be tried in a process of its own"):
        Tokenizer.load(path)


@pytest.mark.fault("hostile tokenizer")
def test_a_pipe_in_place_of_a_tokenizers_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(GOOD))
    os.mkfifo(tmp_path / "tokenizer_config.json")
    assert find_published_tokenizer(tmp_path, 24, fixed_length=False).end_token == 1
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="there is neither"):
        find_published_tokenizer(tmp_path, 24, fixed_length=False)
    with pytest.raises(TokenizerError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "tokenizer.json")
