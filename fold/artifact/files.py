"""The folders and files of a model repository, read in a way that nothing in it can hold up or mislead the reader.

Whoever can write to the repository may leave anything there: pipes, devices, links that lead outside or in a circle.
Only regular files inside the folder of a version are opened, and never one that could block.
"""

import contextlib
import os
import re
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from fold.errors import BnfoldError, first_line, printable

NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
VERSION_PATTERN = re.compile(r"[1-9][0-9]*")
NAMES = "a model's folder has a name of letters, digits, '_', '-' and '.', with a letter or digit first"
SHOWN = 5
"""How many models of a repository, or versions of a model, a message names."""
NUMBERS = "a version's folder is named by a whole number from 1, without leading zeros"


@dataclass(frozen=True)
class Listing:
    """The folders inside a folder: names of those that count, and why others do not, by their printable names. Hidden
    folders and files are in neither."""

    found: tuple[str, ...] = ()
    ignored: dict[str, str] = field(default_factory=dict)


def model_folders(repository: Path) -> Listing:
    """The folders of models, ascending. Raises `BnfoldError` if there is no such repository, `OSError` if it cannot be
    read."""
    if not repository.is_dir():
        what = "is a file" if repository.is_file() else "no such folder"
        raise BnfoldError(f"{repository}: {what}; expected a model repository, made by bnfold fold --out")
    return _listing(repository, NAME_PATTERN, NAMES)


def version_folders(model: Path) -> Listing:
    """The numbered folders of one model, ascending; none if there is no such folder. Raises `OSError` if it cannot be
    read."""
    try:
        listing = _listing(model, VERSION_PATTERN, NUMBERS)
    except (FileNotFoundError, NotADirectoryError):
        return Listing()
    return Listing(tuple(sorted(listing.found, key=int)), listing.ignored)


def version_numbers(model: Path) -> list[int]:
    """Numbered versions in the folder of one model, ascending."""
    return [int(version) for version in version_folders(model).found]


def published_models(repository: Path) -> list[str]:
    """The models of a repository that have a version, ascending; none if it is the folder of a model, or no folder."""
    if not repository.is_dir() or is_published(repository):
        return []
    return [name for name in model_folders(repository).found if holds_version(repository / name)]


def version_folder(model_dir: Path) -> Path:
    """The folder of the latest version in REPOSITORY/NAME. Any other folder is taken as a version itself.

    Raises `BnfoldError` for a repository, for a file, and if there is no such folder.
    """
    if numbers := version_numbers(model_dir):
        return model_dir / str(numbers[-1])
    if model_dir.is_file():
        raise BnfoldError(f"{model_dir}: is a file; expected a folder, REPOSITORY/NAME or REPOSITORY/NAME/VERSION")
    if models := published_models(model_dir):
        raise BnfoldError(
            f"{model_dir}: is a repository with the models {_some(models)}; name one of them, {model_dir / models[0]}"
        )
    if not model_dir.exists():
        raise BnfoldError(
            f"{model_dir}: no such folder; expected REPOSITORY/NAME or REPOSITORY/NAME/VERSION{_neighbours(model_dir)}"
        )
    return model_dir


def _neighbours(absent: Path) -> str:
    """What a message adds about a model or a version that there is not: which there are."""
    folder = absent.parent
    with contextlib.suppress(OSError):  # it says nothing of folders that may not be read
        if holds_version(folder):
            return f"; {folder} has the versions {_some(version_folders(folder).found)}"
        if models := published_models(folder):
            return f"; {folder} has the models {_some(models)}"
    return ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def published_version(path: Path) -> Path | None:
    """The folder of the version that REPOSITORY/NAME or REPOSITORY/NAME/VERSION names, the latest of the first; None
    for any other path. Raises `BnfoldError` for a repository."""
    folder = version_folder(path) if path.is_dir() else path
    return folder if is_published(folder) else None


def repository_of(folder: Path) -> Path | None:
    """The repository that a model's or a version's folder lies in; None for any other folder."""
    if holds_version(folder):
        return folder.parent
    return folder.parent.parent if is_published(folder) else None


def holds_version(model: Path) -> bool:
    """Whether a folder is that of a model with a published version."""
    return any(is_published(model / str(number)) for number in version_numbers(model))


def is_published(folder: Path) -> bool:
    """Whether a folder is a version that was published."""
    return (folder / "manifest.json").is_file()


def open_file(folder: Path, name: str) -> BufferedReader:
    """Open a file of a version. Raises `BnfoldError` unless it is a regular file inside `folder`, `OSError` if it
    cannot be read."""
    path = folder / name
    try:
        path.stat()  # long chains and circles of links end here
        real, inside = os.path.realpath(path), os.path.realpath(folder)
        if os.path.commonpath((real, inside)) != inside:
            raise BnfoldError(f"{path}: lies outside of its version's folder; copy it there")
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except ValueError as error:  # a name with a null byte
        raise BnfoldError(f"{printable(str(path))}: is no name of a file") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BnfoldError(f"{path}: is not a regular file; replace it by one")
    return os.fdopen(descriptor, "rb")


def check_file(folder: Path, name: str) -> None:
    """Raise `BnfoldError` unless a file of a version can be opened."""
    try:
        open_file(folder, name).close()
    except OSError as error:
        raise BnfoldError(f"{folder / name}: cannot be read ({error.strerror}); fold the model again") from error


@contextmanager
def new_file(path: Path, prefix: str = ".") -> Iterator[Path]:
    """A hidden file beside `path`, to be written. It is `path` when the block ends and its content is on disk; it is
    removed if the block raises. Raises `BnfoldError` if it cannot be written."""
    partial = path.with_name(f"{prefix}{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name.lstrip('.')}")
    try:
        yield partial
        sync(partial)
        partial.rename(path)
        sync(path.parent)
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be written ({error.strerror or first_line(error)})") from error
    finally:
        partial.unlink(missing_ok=True)


def update_file(path: Path, content: bytes) -> None:
    """Write a file whole, unless it has this content already. Raises `BnfoldError` if it cannot be written."""
    if not path.is_file() or path.read_bytes() != content:
        with new_file(path) as partial:
            partial.write_bytes(content)


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _listing(folder: Path, pattern: re.Pattern[str], why: str) -> Listing:
    found, ignored = [], {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            is_folder, matches = _is_folder(entry), pattern.fullmatch(entry.name)
            if is_folder and matches:
                found.append(entry.name)
            elif is_folder:
                ignored[printable(entry.name)] = why
            elif matches and (entry.is_symlink() or pattern is VERSION_PATTERN):
                ignored[printable(entry.name)] = "it is no folder"
    return Listing(tuple(found), ignored)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder, or a link to one; false for links in a circle and for what may not be looked at."""
    try:
        return entry.is_dir()
    except OSError:
        return False
