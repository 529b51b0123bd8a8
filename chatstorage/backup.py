"""Copies a database while it may be in use."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from chatstorage.files import fsync_folder, replace

ATTEMPTS = 3


class BackupFailed(Exception):
    """The backup failed; the text tells the operator why."""


def back_up(
    source: Path,
    target: Path,
    files: tuple[str, ...],
    committed: Callable[[], dict[str, int]],
    copy_more: Callable[[], object],
) -> None:
    """Copy the `files` of the database in `source` to `target`, an empty or new folder: all of them, or nothing.

    `committed` asks the process that has the database open, like Storage.committed; `copy_more` copies what is
    independent of these files. Raises BackupFailed, OSError, and what `copy_more` raises.
    """
    if target.exists() and any(target.iterdir()):
        raise BackupFailed(f"{target} is not empty")
    with _new_folder(target):
        copy_more()  # first: it may lack what the files have, but must not have what they lack
        for _ in range(ATTEMPTS):
            if data := _read(source, files, committed):
                _store(target, data)
                return
        raise BackupFailed(f"the files in {source} were replaced in each of {ATTEMPTS} attempts")


def _read(source: Path, files: tuple[str, ...], committed: Callable[[], dict[str, int]]) -> dict[str, bytes]:
    """The committed bytes, by file; nothing if a file was replaced meanwhile, as opening the database does.

    Opens each file before asking how much of it is committed: that much never changes.
    """
    with ExitStack() as stack:
        opened = {name: stack.enter_context((source / name).open("rb")) for name in files if (source / name).exists()}
        lengths = committed()
        for name in lengths:
            if name not in opened or not os.path.samestat(os.fstat(opened[name].fileno()), (source / name).stat()):
                return {}
        return {name: opened[name].read(length) for name, length in lengths.items()}


def _store(target: Path, data: dict[str, bytes]) -> None:
    """Write the files in order; the last one makes it a database. Raises BackupFailed."""
    try:
        for name, content in data.items():
            replace(target / name, [content])
            fsync_folder(target)
        fsync_folder(target.parent)
    except OSError as error:
        raise BackupFailed(f"{target} cannot be written: {error.strerror}") from error


@contextmanager
def _new_folder(target: Path) -> Iterator[None]:
    """Make the folder unless it exists; if the block fails, restore the previous state."""
    made = not target.exists()
    if made:
        target.mkdir(mode=0o700)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in target.iterdir():
                path.unlink()
            if made:
                target.rmdir()
        raise
