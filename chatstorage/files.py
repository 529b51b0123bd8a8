"""Files and folders that a crash leaves either old or new."""

import os
from io import FileIO
from pathlib import Path


def make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fsync_folder(folder.parent)


def open_file(path: Path) -> FileIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)


def write(descriptor: int, data: bytes, offset: int) -> None:
    while data:  # a write may be short if the disk is nearly full
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def replace(path: Path, lines: list[bytes]) -> None:
    """Write a whole file so that a crash leaves either the old or the new one. The caller syncs the folder."""
    temporary = path.with_suffix(".tmp")
    with open_file(temporary) as file:
        os.ftruncate(file.fileno(), 0)
        write(file.fileno(), b"".join(lines), 0)
        os.fsync(file.fileno())
    temporary.replace(path)


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
