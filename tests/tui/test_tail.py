"""Lines of a growing file."""

from pathlib import Path

from clip_tui.tail import Tail


def test_a_tail_gives_whole_lines_once_and_keeps_a_torn_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = Tail(log)
    assert tail.new_lines() == []
    log.write_bytes(b"one\ntwo\nthr")
    assert tail.new_lines() == ["one", "two"]
    assert tail.new_lines() == []
    with log.open("ab") as handle:
        handle.write(b"ee\nbar 1%\rbar 2%\nend")
    assert tail.new_lines() == ["three", "bar 2%"]
    assert tail.new_lines(ended=True) == ["end"]
    log.write_bytes(b"anew\n")
    assert tail.new_lines() == ["anew"]
