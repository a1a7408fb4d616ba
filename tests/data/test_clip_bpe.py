"""CLIP's own BPE: where its vocabulary is found, how it is framed, and what is refused."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from clip_core.data.clip_bpe import VOCABULARY, clip_tokenizer, find_clip_tokenizer
from clip_core.data.clip_text import byte_symbols
from clip_core.data.tokenizer import END, START, Tokenizer, train_bpe
from clip_core.errors import TokenizerError
from clip_core.inference.encoder import check_tokenizer

SYMBOLS = sorted(byte_symbols())
MERGES = [("c", "a"), ("ca", "t</w>"), ("'", "s</w>"), ("d", "o"), ("do", "g</w>")]
WORDS = [*SYMBOLS, *(s + "</w>" for s in SYMBOLS), *("".join(pair) for pair in MERGES), START, END]
VOCAB = {word: number for number, word in enumerate(WORDS)}
A_CAT = [VOCAB[START], VOCAB["a</w>"], VOCAB["cat</w>"], VOCAB[END]]


def small(**options: object) -> Tokenizer:
    return clip_tokenizer(VOCAB, MERGES, 12, **options)


def not_installed(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def hugging_face_file(path: Path) -> None:
    """A tokenizer.json as Hugging Face writes one: special tokens added, neither truncation nor padding."""
    said = json.loads(small()._inner.to_str())
    said["truncation"] = said["padding"] = None
    said["added_tokens"] = [
        {"id": VOCAB[name], "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for name in (START, END)
    ]  # fmt: skip
    said["post_processor"] = {
        "type": "RobertaProcessing", "sep": [END, VOCAB[END]], "cls": [START, VOCAB[START]],
        "trim_offsets": False, "add_prefix_space": False,
    }  # fmt: skip
    path.write_text(json.dumps(said), encoding="utf-8")


def two_files(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps(VOCAB), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in MERGES)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def packed(folder: Path) -> None:
    merges = "\n".join(" ".join(pair) for pair in MERGES)
    (folder / VOCABULARY).write_bytes(gzip.compress(f'"bpe_simple#version: 0.2\n{merges}\n'.encode()))


def with_added_words(path: Path, **traits: bool) -> None:
    """Two words of one's own behind the end token, as textual inversion adds them."""
    hugging_face_file(path)
    said = json.loads(path.read_text(encoding="utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False} | traits
    said["added_tokens"] += [
        {"id": len(VOCAB) + n, "content": word} | plain for n, word in enumerate(("<toy>", "<toy>s"))
    ]
    path.write_text(json.dumps(said), encoding="utf-8")


ADDED = ["a <toy>", "<toy>s<toy>!", "<TOY> cat", "cat<toy>s dog", "<toy", "a<toy>dog", "<toy> <|endoftext|> <toy>s"]


@pytest.mark.parametrize(
    "traits",
    [{}, {"normalized": False}, {"special": True}, {"single_word": True}, {"special": True, "normalized": False}],
)
def test_added_words_are_tokens_as_they_are_to_the_library(traits: dict[str, bool], tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    with_added_words(path, **traits)
    library = tokenizers.Tokenizer.from_file(str(path))
    tokenizer = find_clip_tokenizer(tmp_path, 12)
    tokenizer.save(tmp_path / "saved.json")
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "saved.json"))  # as the bundle's example.py reads it
    plain.encode_special_tokens = True
    assert tokenizer.vocab_size == len(VOCAB) + 2
    for caption in ADDED:
        (row,) = tokenizer.encode([caption]).tolist()
        assert row == plain.encode(caption).ids == Tokenizer.load(tmp_path / "saved.json").encode([caption])[0].tolist()
        if END not in caption:  # which is the end of the text to the library, and text here
            assert row == library.encode(caption).ids
        assert row.count(VOCAB[END]) == 1
    assert tokenizer.encode(["a <toy>s"]).tolist() == [[*A_CAT[:2], len(VOCAB) + 1, VOCAB[END]]]
    assert tokenizer.decode(tokenizer.encode(["a cat <toy>"])[0]) == "a cat <toy>"


def test_a_frame_token_that_a_file_calls_a_word_stays_a_frame_token(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    hugging_face_file(path)
    said = json.loads(path.read_text(encoding="utf-8"))
    for token in said["added_tokens"]:
        token["special"] = False
    path.write_text(json.dumps(said), encoding="utf-8")
    (row,) = find_clip_tokenizer(tmp_path, 12).encode([f"a {END} cat"])
    assert np.flatnonzero(row == VOCAB[END]).tolist() == [len(row) - 1]


@pytest.mark.parametrize("put", [lambda f: hugging_face_file(f / "tokenizer.json"), two_files, packed])
def test_the_vocabulary_is_found_in_the_weights_folder(put, tmp_path: Path):
    put(tmp_path)
    tokenizer = find_clip_tokenizer(tmp_path, 12)
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.context_length) == ("clip", len(VOCAB), 12)
    assert tokenizer.encode(["A   cat"]).tolist() == [A_CAT]
    assert tokenizer.encode([f"a{END}"]).tolist()[0].count(VOCAB[END]) == 1


def test_without_a_folder_an_installed_library_has_it():
    tokenizer = find_clip_tokenizer(None, 77)
    assert (tokenizer.vocab_size, tokenizer.end_token, tokenizer.context_length) == (49408, 49407, 77)


def test_a_vocabulary_that_is_nowhere_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    not_installed(monkeypatch, "open_clip", "clip")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TokenizerError, match=r"put tokenizer\.json, or vocab\.json with merges\.txt.*open_clip"):
        find_clip_tokenizer(tmp_path, 77)


def test_what_transformers_fetched_before_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    not_installed(monkeypatch, "open_clip", "clip")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--openai--clip-vit-base-patch32" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    two_files(snapshot)
    assert find_clip_tokenizer(None, 12).encode(["a cat"]).tolist() == [A_CAT]


def test_neither_finding_it_nor_reading_a_plain_caption_imports_more_than_it_needs():
    code = (
        "import sys; from clip_core.data.clip_bpe import find_clip_tokenizer as find;"
        "t = find(None, 77); t.encode(['a photo']);"
        "print(sorted({'torch', 'open_clip', 'transformers', 'ftfy'} & sys.modules.keys()))"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": root, "PATH": ""}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_padding_is_zero_or_the_end_token_and_as_long_as_asked_for():
    rows = ["a cat", "a cat's dog"]
    zero, end = small().encode(rows), small(pad="end").encode(rows)
    assert zero.shape == end.shape == (2, 6)
    assert zero[0].tolist() == [*A_CAT, 0, 0]
    assert end[0].tolist() == [*A_CAT, VOCAB[END], VOCAB[END]]
    assert small(fixed_length=True).encode(["a cat"]).shape == (1, 12)
    assert small(fixed_length=True).encode([]).shape == (0, 12)
    assert small().encode([]).shape == (0, 2)


def test_framing_survives_saving(tmp_path: Path):
    tokenizer = small(pad="end", fixed_length=True)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.is_clip
    assert loaded.pads_to_context
    np.testing.assert_array_equal(loaded.encode(["a cat"]), tokenizer.encode(["a cat"]))
    shorter = Tokenizer.load(tmp_path / "tokenizer.json", 6, pad="zero")
    assert shorter.encode(["a cat"]).tolist() == [[*A_CAT, 0, 0]]
    assert not Tokenizer.load(tmp_path / "tokenizer.json", fixed_length=False).pads_to_context


def test_a_hugging_face_folder_says_what_it_pads_with(tmp_path: Path):
    hugging_face_file(tmp_path / "tokenizer.json")
    rows = ["a cat", "a cat a cat"]
    assert find_clip_tokenizer(tmp_path, 12).encode(rows)[0, -1] == 0
    said = {"pad_token": END, "eos_token": {"content": END, "lstrip": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    assert find_clip_tokenizer(tmp_path, 12).encode(rows)[0, -1] == VOCAB[END]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said | {"pad_token": "!"}))
    assert find_clip_tokenizer(tmp_path, 12).encode(rows)[0, -1] == 0
    assert find_clip_tokenizer(tmp_path, 12, pad="end").encode(rows)[0, -1] == VOCAB[END]


def test_a_caption_that_is_cut_keeps_its_end_and_is_counted():
    tokenizer = small()
    row = tokenizer.encode(["a " * 50])[0]
    assert len(row) == 12
    assert row[-1] == VOCAB[END]
    assert tokenizer.count_truncated(["a " * 10, "a " * 11, ""]) == 1


def test_decoding_keeps_exclamation_marks_whose_number_is_the_padding():
    tokenizer = small()
    assert VOCAB["!"] == 0
    assert tokenizer.decode(tokenizer.encode(["a cat!!", "a cat and a dog"])[0]) == "a cat !!"
    assert tokenizer.decode(tokenizer.encode(["日本 é"])[0]) == "日本 é"


def test_the_plain_library_reads_ordinary_captions_alike(tmp_path: Path):
    tokenizer = find_clip_tokenizer(None, 77)
    tokenizer.save(tmp_path / "tokenizer.json")
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = ["A photo of 3 cats, it's FUN!", "naïve café -- 12-inch", "日本の写真", " two \n dogs ", "🐈 black cat", ""]
    np.testing.assert_array_equal(tokenizer.encode(texts), [row.ids for row in plain.encode_batch(texts)])
    assert plain.decode(plain.encode("two dogs!").ids[1:-1]) == "two dogs ! "


def test_a_bpe_of_another_kind_is_not_taken_for_clips():
    assert not train_bpe(["a cat", "a dog"], 300, 12).is_clip
    other = tokenizers.Tokenizer(tokenizers.models.BPE({"a</w>": 0, "e": 1}, [], end_of_word_suffix="</w>"))
    other.post_processor = tokenizers.processors.TemplateProcessing(single="$A e", special_tokens=[("e", 1)])
    other.enable_truncation(12)
    other.enable_padding()
    assert not Tokenizer(other).is_clip


def test_a_model_may_have_room_for_more_tokens_than_a_published_tokenizer_has():
    tokenizer, size = small(), len(VOCAB)
    for room in (0, 64):
        check_tokenizer(tokenizer, vocab_size=size + room, end_token=VOCAB[END], context_length=12)
    with pytest.raises(TokenizerError, match="does not fit the model"):
        check_tokenizer(tokenizer, vocab_size=size - 1, end_token=VOCAB[END], context_length=12)
    own = train_bpe(["a cat", "a dog"], 300, 12)
    with pytest.raises(TokenizerError, match="does not fit the model"):
        check_tokenizer(own, vocab_size=own.vocab_size + 1, end_token=own.end_token, context_length=12)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.json", b"{", "not JSON"),
        ("vocab.json", b'{"a": "b"}', "a number of its own"),
        ("vocab.json", b'{"a": 0, "b": 7}', "a number of its own"),
        ("vocab.json", b"[1]", "a number of its own"),
        ("vocab.json", b'{"a": 0}', "not CLIP's"),
        ("vocab.json", b"\xff\xfe", "not text"),
        ("merges.txt", b"#version: 0.2\na b c\n", "no pair of tokens"),
        ("merges.txt", b"#version: 0.2\nno pe\n", "do not belong together"),
    ],
)
def test_a_damaged_vocabulary_is_refused_by_name(name: str, content: bytes, reason: str, tmp_path: Path):
    two_files(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"^{tmp_path}.*{reason}"):
        find_clip_tokenizer(tmp_path, 12)


@pytest.mark.parametrize(
    "spoil", [lambda b: b[: len(b) // 2], lambda b: b"no gzip", lambda b: b[:20] + b"\0\0" + b[22:]]
)
def test_a_damaged_archive_is_refused_by_name(spoil, tmp_path: Path):
    packed(tmp_path)
    (tmp_path / VOCABULARY).write_bytes(spoil((tmp_path / VOCABULARY).read_bytes()))
    with pytest.raises(TokenizerError, match=r"16e6\.txt\.gz cannot be read"):
        find_clip_tokenizer(tmp_path, 12)


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path):
    (tmp_path / VOCABULARY).write_bytes(gzip.compress(b"\0" * (2**26 + 1), 9))
    with pytest.raises(TokenizerError, match="larger than any vocabulary"):
        find_clip_tokenizer(tmp_path, 12)


def test_a_tokenizer_of_another_kind_in_the_folder_is_the_folders(tmp_path: Path):
    own = train_bpe(["a cat", "a dog"], 300, 12)
    own.save(tmp_path / "tokenizer.json")
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "copy.json")
    found = find_clip_tokenizer(tmp_path, 12, fixed_length=True)
    assert found.kind == "bpe"
    assert found.encode(["a cat"]).shape == (1, 12)
