"""Sources within a source: a mapping {"source": name, options of that source...}."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmrl import build
from mmrl.remote import opened
from mmrl.types import InputError, Source


def check(where: str, given: Any, *, also: Sequence[str] = ()) -> type:
    """The class of a source, whose options are checked without reading the corpus.

    Args:
      where: the config key for messages.
      also: keys beside "source" that are no options of the source.

    Raises:
      InputError: no mapping with "source", an unknown source or option, or a missing one.
    """
    if not hasattr(given, "items") or "source" not in given:
        raise InputError(f"{where} is {given!r}; expected source and its options")
    target = build.find("source", given["source"])
    options = {key: given[key] for key in given if key not in ("source", *also)}
    build.check_options(where, target, options, supplied=("split",))
    if hasattr(target, "check_options"):
        target.check_options(where, options)
    return target


def make(split: str, given: Mapping[str, Any], *, also: Sequence[str] = ()) -> Source:
    """One split of the source; `given` and `also` as of `check`."""
    options = {key: value for key, value in given.items() if key not in ("source", *also)}
    return open_source(given["source"], split, options)


def open_source(name: str, split: str, options: Mapping[str, Any]) -> Source:
    """One split of a source. Options without a value keep their default.

    None is no value, and "" is one only where the default is another text. Files and folders that
    are given as addresses of an object store are read from local copies, see `opened.fetched`.
    """
    target: Any = build.find("source", name)
    stated = build.options(target)
    kept = {
        key: value
        for key, value in options.items()
        if value is not None and (value != "" or stated[key].default not in (None, ""))
    }
    if name != "tfds":  # it reads addresses itself
        kept = {key: _local(key, value, kept, stated) for key, value in kept.items()}
    made: Source = target(split=split, **kept)
    return made


def _local(key: str, value: Any, options: Mapping[str, Any], stated: Collection[str]) -> Any:
    """An option of a source with a local copy in place of an address."""
    where = f"config.data.{key}"
    if isinstance(value, list | tuple):
        return type(value)(_local(key, one, options, stated) for one in value)
    if not opened.is_address(value):
        return value
    # Images of a table lie beside it, unless `root` says otherwise.
    with_folder = key == "path" and "root" in stated and "root" not in options
    return str(opened.located(where, value, with_folder=with_folder))
