"""Check that the folders and files that a recipe or a command-line option names can be written, without creating them.

Folders that are missing above them are made when they are written, by all commands alike.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import Problem, UserError

NAME_MAX, PATH_MAX = 255, 4095
"""Most bytes of one name and of a whole path on Linux."""
FULL = 64 * 1024
"""Free bytes below which a disk counts as full."""


def name_problem(path: str) -> str:
    """The problem of a path as a text, in the form ``why; fix``; empty if there is none."""
    if not path.strip():
        return "is empty; give a folder"
    if any(not character.isprintable() for character in path):
        return "holds a character that cannot be shown, such as a line break; leave it out"
    if path.startswith("~") and os.path.expanduser(path) == path:
        return "begins with ~ and a name that nobody has here; give the whole path"
    try:
        longest, whole = max(len(os.fsencode(part)) for part in path.split("/")), len(os.fsencode(path))
    except UnicodeEncodeError:
        return "contains a character that is not allowed in file names; leave it out"
    if longest > NAME_MAX or whole > PATH_MAX:
        return f"is too long for a file system (a name: {NAME_MAX} bytes, a path: {PATH_MAX}); shorten it"
    return ""


def check_new_folder(given: str | os.PathLike[str], field: str) -> None:
    """Refuse a place for a new folder at which there is something, or which cannot be written.

    Args:
        field: what the user calls the place.

    Raises:
        UserError: a file or a folder that is not empty is there, or the folder cannot be made.
    """
    path = Path(os.path.expanduser(given))
    if why := name_problem(str(given)).partition(";")[0]:
        pass
    elif os.path.lexists(path) and not path.is_dir():
        why = "is a file, not a folder"
    elif not (why := folder_problem(path) or folder_problem(path.parent)) and path.is_dir() and any(path.iterdir()):
        why = "exists and is not empty"
    if why:
        raise UserError(Problem(field, why, "name a new folder", str(given)))


def check_new_file(given: str | os.PathLike[str], field: str, example: str) -> Path:
    """The place for a file that will be written; the folders above it may be missing. It may hold a file already.

    Args:
        field: what the user calls the place.
        example: name of such a file.

    Raises:
        UserError: a folder is there or meant, or the file cannot be written.
    """
    text, fix = str(given), f"write a file: {example}"
    path = Path(os.path.expanduser(text))
    if why := name_problem(text).partition(";")[0]:
        pass
    elif path.is_dir() or text.endswith("/"):
        why, fix = "is a folder", f"write a file: {path / example}"
    elif os.path.lexists(path) and not path.is_file():
        why = "is there already and is not a plain file"
    else:
        why, fix = folder_problem(path.parent), "give another file, in a folder that can be written"
        if not why and path.is_file() and not os.access(path, os.W_OK):
            why = "may not be written by this user"
    if why:
        raise UserError(Problem(field, why, fix, text))
    return path


def folder_problem(path: Path) -> str:
    """The reason why a folder cannot be created or written at ``path``; empty if none is visible."""
    try:
        there = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))
        if not stat.S_ISDIR(os.stat(there).st_mode):
            return f"cannot be written: {there} is a file, not a folder"
        if there.resolve().parts[1:2] in (("proc",), ("sys",)):
            return "cannot be written: it lies in a file system of the kernel"
        if not os.access(there, os.W_OK | os.X_OK):
            return f"cannot be written: {there} may not be written by this user"
        disk = os.statvfs(there)
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < FULL:
        return f"cannot be written: no space is left on the disk of {there}"
    return ""
