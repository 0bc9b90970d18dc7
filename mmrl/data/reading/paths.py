"""Checks of paths that a corpus names, so that no table leads a reader to other files."""

import os
from collections.abc import Callable


def is_inside(root: str, relative: str, realpath: Callable[[str], str] = os.path.realpath) -> bool:
    """Whether a relative path stays below `root`, as written and after following symbolic links.

    The file need not exist. A path with a null character is not inside.

    Args:
      realpath: resolves `root` and folders. Pass `functools.cache(os.path.realpath)` to check many
        paths: the default takes four times as long.
    """
    if "\0" in relative or os.path.isabs(relative):
        return False
    if os.path.normpath(relative).split(os.sep)[0] == os.pardir:
        return False
    folder, name = os.path.split(os.path.join(root, relative))
    real = os.path.join(realpath(folder), name)
    if os.path.islink(real) or name == os.pardir:
        real = os.path.realpath(real)
    top = realpath(root)
    return os.path.commonpath([top, real]) == top


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file in the same folder, and no path."""
    return name not in ("", os.curdir, os.pardir) and not {"/", os.sep, "\0"} & set(name)
