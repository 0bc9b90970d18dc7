"""Finds the files that a corpus names, so that no table leads a reader to other files.

A table may come from another system: with backslashes between folders, or with letters composed
otherwise than in the names on the disk. `Root.find` reads such paths. Where it finds no file,
`Root.near` says which one is probably meant.
"""

import collections
import functools
import itertools
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from mmrl.types import InputError

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_MOST_FOLDERS = 1000  # in which a missing file is looked for
_MOST_EXPLAINED = 20  # missing files; the others will be missing for the same reason
_BACKSLASHES = "backslashes are read as separators"
_COMPOSED = "letters are composed otherwise than in the names of the files, and read as equal"


class OutsideError(ValueError):
    """A path leads out of its root; the message says how."""


class Root:
    """A folder to which the paths of a corpus are relative.

    It lists a folder once, when a file in it is not found at first. It pickles without what it
    found.

    Args:
      path: the folder.
      follow_links: other folders into which symbolic links may lead.

    Attributes:
      read_as: what was decided for the user -> number of paths, see `notes`.

    Raises:
      InputError: one of `follow_links` is no folder.
    """

    def __init__(self, path: str, follow_links: Sequence[str] | str = ()) -> None:
        follow = (follow_links,) if isinstance(follow_links, str) else tuple(follow_links)
        for folder in follow:
            if not os.path.isdir(folder):
                raise InputError(
                    f"data.follow_links: '{folder}' is not a folder; expected folders into which"
                    " symbolic links may lead"
                )
        self.path, self._follow = path, follow
        self._allowed = [os.path.realpath(folder) for folder in (path, *follow)]
        self._place = functools.cache(self._resolved)
        self._listed: dict[tuple[str, Callable[[str], str]], dict[str, list[str]]] = {}
        self._explained = 0
        self.read_as: collections.Counter[str] = collections.Counter()

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        return Root, (self.path, self._follow)

    def find(self, given: str) -> str:
        """The path of a file relative to the root, as it is on the disk.

        A path that is there is returned as it is given, and so is one that is nowhere. Otherwise
        backslashes are read as separators, and letters in any normal form of Unicode.

        Args:
          given: relative, or absolute below the root.

        Raises:
          OutsideError: the path leads out of the root, as written or by a symbolic link.
        """
        relative = self._relative(given)
        if self._is_there(relative):
            return relative
        turned = relative.replace("\\", "/")
        found = turned
        if turned == relative or not self._is_there(self._relative(turned)):
            found = self._walk(turned, _composed)
            if not found or not self._is_there(found):
                return relative
            self.read_as[_COMPOSED] += 1
        if turned != relative:
            self.read_as[_BACKSLASHES] += 1
        return found

    def check(self, relative: str) -> None:
        """Raises OutsideError unless a path is relative and stays below the root."""
        if not relative or os.path.isabs(relative):
            raise OutsideError(f"is not relative to '{self.path}'")
        self._is_there(self._relative(relative))

    def notes(self, what: str) -> list[str]:
        """A line for each thing that was decided for the user; `what` names the files."""
        return [f"{count:,} paths of {what}: {how}" for how, count in self.read_as.items()]

    def near(self, given: str) -> str:
        """What a path that is not found probably means, as "; there is ..."; "" without an idea.

        Only of the first 20 missing files, since looking for them takes time.
        """
        if self._explained >= _MOST_EXPLAINED:
            return ""
        self._explained += 1
        try:
            found = next(self._ideas(given), "")
        except (OSError, ValueError):
            return ""
        return f"; {_shown(found)}" if found else ""

    def _relative(self, given: str) -> str:
        """The path relative to the root; OutsideError if it leads out of it as written."""
        relative = given
        if "\0" in given:
            raise OutsideError("holds a null character")
        if os.path.isabs(given):
            normal = os.path.normpath(given)
            tops = os.path.abspath(self.path), self._allowed[0]
            inside = (top for top in tops if os.path.commonpath([top, normal]) == top)
            top = next(inside, None)
            if top is None:
                raise OutsideError(f"leads outside root '{self.path}'; expected a path inside it")
            relative = os.path.relpath(normal, top)
        if os.pardir in relative and os.path.normpath(relative).split(os.sep)[0] == os.pardir:
            raise OutsideError(f"leads outside root '{self.path}'; expected a path inside it")
        return relative

    def _is_there(self, relative: str) -> bool:
        """Whether there is such a file or folder; OutsideError if links lead out of the root."""
        folder, name = os.path.split(relative)
        place, inside = self._place(folder)
        real = f"{place}{os.sep}{name}"
        try:
            mode = os.lstat(real).st_mode
        except (OSError, ValueError):
            mode = 0
        if name == os.pardir or stat.S_ISLNK(mode):
            real = os.path.realpath(real)
            inside = self._is_allowed(real)
        if not inside:
            target = _shown(os.path.normpath(real))
            raise OutsideError(
                f"leads outside root '{self.path}' by a symbolic link, to '{target}';"
                f" data.follow_links={os.path.dirname(target)} allows links into that folder"
            )
        return mode != 0

    def _resolved(self, folder: str) -> tuple[str, bool]:
        """A folder below the root with links resolved, and whether it may be read."""
        real = os.path.realpath(os.path.join(self.path, folder))
        return real, self._is_allowed(real)

    def _is_allowed(self, real: str) -> bool:
        return any(os.path.commonpath([top, real]) == top for top in self._allowed)

    def _names(self, folder: str, form: Callable[[str], str]) -> dict[str, list[str]]:
        """Name in some form -> names on the disk, of a folder; {} for one outside the root."""
        key = folder, form
        if key not in self._listed:
            found: dict[str, list[str]] = {}
            try:
                there = self._is_there(folder)
                names = os.listdir(os.path.join(self.path, folder)) if there else []
            except (OSError, ValueError):
                names = []
            for name in sorted(names):
                found.setdefault(form(name), []).append(name)
            self._listed[key] = found
        return self._listed[key]

    def _walk(self, relative: str, form: Callable[[str], str]) -> str:
        """The one path on the disk that equals `relative` in some form, or ""."""
        found = ""
        for part in os.path.normpath(relative).split(os.sep):
            names = self._names(found, form).get(form(part), [])
            if part in names:
                names = [part]
            if len(names) != 1:
                return ""
            found = os.path.join(found, names[0])
        return found

    def _ideas(self, given: str) -> Iterator[str]:
        """What a path that is not found may mean, the likeliest first."""
        full = os.path.join(self.path, given)
        if os.path.islink(full):
            yield f"it is a link to '{os.readlink(full)}', which is not there"
        if os.path.isdir(full):
            yield "it is a folder"
        bare = given.strip("\"' ").removeprefix("file://")
        if re.match(r"[a-z][a-z0-9+.-]*://", bare):
            yield "it is an address; fetch the images, and state their folder as data.root"
        if _DRIVE.match(bare):
            yield "it is an absolute path of Windows; expected a path relative to root"
        relative = self._relative(bare).replace("\\", "/")
        if relative != given and self._is_there(relative):
            yield f"there is '{relative}', as written without quotes and file://"
        if found := self._walk(relative, _folded):
            yield f"there is '{found}', with other capital letters"
        folder, name = os.path.split(os.path.normpath(relative))
        for other in self._names(folder, _stem).get(_stem(name), []):
            yield f"there is '{os.path.join(folder, other)}', with another suffix"
        head, _, tail = os.path.normpath(relative).partition(os.sep)
        if tail and self._is_there(tail):
            yield f"there is '{tail}', without the folder '{head}'"
        for below in sorted(itertools.islice(self._names("", str), _MOST_FOLDERS)):
            for inner in (relative, name):
                if self._is_there(os.path.join(below, inner)):
                    yield f"there is '{os.path.join(below, inner)}'; data.root states the folder"
        parent = os.path.join(self.path, os.pardir)
        if os.path.lexists(os.path.join(parent, relative)):
            yield "there is such a file in the folder above; data.root states the folder"
        if folder and not self._is_there(folder):
            yield f"there is no folder '{folder}'"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _composed(name).casefold()


def _stem(name: str) -> str:
    return os.path.splitext(_folded(name))[0]


def _shown(text: str) -> str:
    """A name from a disk as one line of valid characters."""
    return "".join(char if char.isprintable() else "?" for char in text)


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file in the same folder, and no path."""
    return name not in ("", os.curdir, os.pardir) and not {"/", os.sep, "\0"} & set(name)
