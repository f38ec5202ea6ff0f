"""Real input: rows made from the text files of a folder."""

from __future__ import annotations

import os
import random
import stat
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MOST_ROWS = 20_000  # kept in memory by each process: some 10 MB; writers go round again at the end
CHUNK = 256  # characters after which a chunk of lines ends
LONGEST_CHUNK = 4_096  # characters; a longer line is cut into pieces
LONGEST_FILE = 8 * 1024 * 1024  # bytes; larger files are left out
_NOT_OURS = frozenset({"site-packages", "dist-packages", "__pycache__"})  # below the standard library, but not of it


class SourceError(Exception):
    """Say that a folder holds nothing that rows could be made of."""


class Row(NamedTuple):
    """Be one piece of a real file: where it stands, what it says and the CRC-32 of that."""

    path: str
    line: int
    body: str
    crc: int


def standard_library() -> Path:
    """Return the folder with the running Python's own source files."""
    return Path(sysconfig.get_path("stdlib"))


def checksum(path: str, line: int, body: str) -> int:
    """Return the CRC-32 of a row's content."""
    return zlib.crc32(f"{path}\n{line}\n{body}".encode())


def seal(crc: int, worker: int, sequence: int) -> int:
    """Return the checksum stored with a row: of its content and the number it has."""
    return zlib.crc32(b"%d %d" % (worker, sequence), crc)


def load(folder: Path | None, seed: int, most: int = MOST_ROWS) -> list[Row]:
    """Read up to ``most`` rows from the text files below a folder, in an order that depends on the seed alone.

    ``folder=None`` takes the ``.py`` files of the running Python's standard library. Links are not followed; what is
    not a regular file, cannot be read, holds NUL bytes (not a text) or is larger than 8 MiB is left out. Raises
    SourceError if nothing is left.
    """
    root = folder if folder is not None else standard_library()
    files = list(_python_files(root) if folder is None else _regular_files(root))
    shuffle = random.Random(seed)  # noqa: S311 - repeatable, not secret
    shuffle.shuffle(files)
    rows: list[Row] = []
    for file in files:
        rows.extend(_rows_of(file, root))
        if len(rows) >= most:
            break
    if not rows:
        raise SourceError(f"no readable text file in {str(root)!r}: name another folder with --source DIR")
    del rows[most:]
    shuffle.shuffle(rows)
    return rows


def _python_files(root: Path) -> Iterator[Path]:
    return (file for file in _regular_files(root, skip=_NOT_OURS) if file.suffix == ".py")


def _regular_files(root: Path, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in skip)
        for name in sorted(files):
            yield Path(folder, name)


def _rows_of(file: Path, root: Path) -> Iterator[Row]:
    """Cut one file into rows; a file that is no text, or cannot be read, gives none."""
    text = _text(file)
    if text is None:
        return
    # A file name may hold bytes that are no UTF-8; a database that takes text takes no lone surrogates.
    path = str(file.relative_to(root)).encode("utf-8", "backslashreplace").decode()
    for line, body in _chunks(text):
        yield Row(path, line, body, checksum(path, line, body))


def _text(file: Path) -> str | None:
    try:
        status = file.lstat()
        # Never open() a FIFO or a device: it may block for ever.
        if not stat.S_ISREG(status.st_mode) or status.st_size > LONGEST_FILE:
            return None
        content = file.read_bytes()
    except OSError:
        return None
    return None if b"\0" in content else content.decode("utf-8", "replace")


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """Give (number of its first line, text) of each piece: whole lines up to some 256 characters."""
    first, piece = 1, ""
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not piece:
            first = number
        piece += line
        if len(piece) >= CHUNK:
            for start in range(0, len(piece), LONGEST_CHUNK):
                yield first, piece[start : start + LONGEST_CHUNK]
            piece = ""
    if piece:
        yield first, piece
