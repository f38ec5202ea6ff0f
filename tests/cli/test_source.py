"""Rows are made from real files, the same ones for the same seed, and odd files do no harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safedb.cli.stress import source
from safedb.cli.stress.source import LONGEST_CHUNK, SourceError, checksum, load, seal


def test_the_standard_library_is_the_default() -> None:
    rows = load(None, seed=1, most=500)
    assert len(rows) == 500
    assert all(row.path.endswith(".py") for row in rows)
    assert not any("site-packages" in row.path for row in rows)


def test_a_row_says_what_its_file_says_at_its_line() -> None:
    for row in load(None, seed=2, most=50):
        text = (source.standard_library() / row.path).read_bytes().decode("utf-8", "replace")
        lines = text.splitlines(keepends=True)
        assert "".join(lines[row.line - 1 :]).find(row.body[:LONGEST_CHUNK]) != -1
        assert row.crc == checksum(row.path, row.line, row.body)


def test_the_same_seed_gives_the_same_rows() -> None:
    assert load(None, seed=3, most=100) == load(None, seed=3, most=100)
    assert load(None, seed=3, most=100) != load(None, seed=4, most=100)


def test_odd_files_are_left_out_or_made_readable(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("one\ntwo\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "binary.bin").write_bytes(b"a\0b")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "link.txt").symlink_to(tmp_path / "plain.txt")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    rows = load(tmp_path, seed=1)
    assert {(row.path, row.body) for row in rows} == {("plain.txt", "one\ntwo\n"), ("latin.txt", "caf\ufffd\n")}


def test_a_file_name_that_is_no_text_is_spelt_out(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/na\xffme.txt")).write_text("text")
    except OSError:
        pytest.skip("this file system takes no such names")
    assert load(tmp_path, seed=1)[0].path == "na\\udcffme.txt"


def test_long_lines_are_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "x" * (2 * LONGEST_CHUNK + 5) + "\n" + "short\n" * 200
    (tmp_path / "long.txt").write_text(text)
    rows = load(tmp_path, seed=1)
    assert max(len(row.body) for row in rows) == LONGEST_CHUNK
    assert sum(len(row.body) for row in rows) == len(text)
    assert min(row.line for row in rows) == 1


def test_a_file_that_is_too_large_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LONGEST_FILE", 3)
    (tmp_path / "large.txt").write_text("1234")
    (tmp_path / "small.txt").write_text("123")
    assert [row.path for row in load(tmp_path, seed=1)] == ["small.txt"]


def test_a_file_that_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, os.strerror(13))

    (tmp_path / "secret.txt").write_text("text")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SourceError):
        load(tmp_path, seed=1)


def test_a_folder_without_text_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--source DIR"):
        load(tmp_path, seed=1)


def test_the_seal_tells_content_worker_and_number_apart() -> None:
    assert len({seal(1, 2, 3), seal(2, 2, 3), seal(1, 3, 3), seal(1, 2, 4), seal(1, 23, 3)}) == 5
