"""What a family of encoders is, and how its tensors become parameters, none of them unaccounted.

A family is a file in this folder with two functions:

    recognises(source) -> bool          whether the config and the tensors are of this family
    convert(source) -> Conversion       options of our towers, and where each parameter comes from

`build` makes the arrays of a conversion. Every tensor of the source is used, or ignored for a
stated reason; every parameter of ours is filled. Anything else is an error that lists the names.
"""

import collections
import contextlib
import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

import mmrl.models.convert as families
from mmrl import build as modules
from mmrl.models.convert.entries import Entry
from mmrl.models.convert.source import Source
from mmrl.types import InputError

# Files that are no family.
_SHARED = ("base", "entries", "images", "poolers", "source", "torch_file")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a source holds, in our names.

    Attributes:
      towers: "image" and "text", as far as there are any -> options, as those of config.towers.
      entries: of every parameter and statistic of these towers, by full path, such as
        towers/text/encoder/norm/scale; and of objectives/global_contrastive.
      ignored: regular expression of whole names of tensors -> why they are not used.
      resize: how images are prepared, see `mmrl.data.image.images.Preprocess`.
      notes: sentences about what differs from the source.
      antialias: how the library interpolates positions of patches, see `positions.resampling`.
    """

    towers: Mapping[str, Mapping[str, Any]]
    entries: tuple[Entry, ...]
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    resize: str = "stretch"
    notes: tuple[str, ...] = ()
    antialias: bool = True


class Family(Protocol):
    """The functions of a file in this folder."""

    def recognises(self, source: Source) -> bool:
        """Whether the source is of this family."""

    def convert(self, source: Source) -> Conversion:
        """The source in our names.

        Raises:
          InputError: a config or an option that has no counterpart here.
        """


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every tensor, for conversion.json.

    Attributes:
      used: tensor -> parameters that it went into.
      ignored: tensor -> why it is not used.
    """

    used: Mapping[str, tuple[str, ...]]
    ignored: Mapping[str, str]


def names() -> tuple[str, ...]:
    """Names of all families."""
    found = (one.name for one in pkgutil.iter_modules(families.__path__))
    return tuple(sorted(name for name in found if name not in _SHARED))


def find(source: Source, name: str = "") -> tuple[str, Family]:
    """The family of a source, with its name.

    Args:
      name: of the family; "": the one that recognises the source.

    Raises:
      InputError: no such family, or the source is of none or several.
    """
    offered = names()
    if name and name not in offered:
        raise InputError(modules.unknown("family", name, offered))
    loaded: dict[str, Any] = {
        one: importlib.import_module(f"{families.__name__}.{one}")
        for one in ((name,) if name else offered)
    }
    found = [one for one, family in loaded.items() if family.recognises(source)]
    if len(found) == 1:
        return found[0], loaded[found[0]]
    if name:
        raise InputError(f"{source.path} is not of the family {name}; {_described(source)}")
    if found:
        listed = ", ".join(found)
        raise InputError(f"{source.path} fits several families: {listed}; choose one by --family")
    raise InputError(
        f"{source.path} is of no known family; {_described(source)}; families: {', '.join(offered)}"
    )


@contextlib.contextmanager
def fitting(source: Source, name: str) -> Iterator[None]:
    """Within, all errors that a config or a shape of no such model leads to name the source.

    Raises:
      InputError: in place of them.
    """
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(source.folder)):
            raise
        raise InputError(f"{source.path}: {error}") from error
    except (
        *(ValueError, LookupError, TypeError, AttributeError),
        *(ArithmeticError, AssertionError, RuntimeError, MemoryError),
    ) as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise InputError(
            f"{source.path}: its config or the shapes of its tensors are not those of the family "
            f"{name} ({reason})"
        ) from error


def _described(source: Source) -> str:
    kind = source.config.get("model_type", source.config.get("architecture", "not stated"))
    shown = ", ".join(source.names[:4])
    return f"its model_type is {kind}, and its {len(source.names)} tensors begin with {shown}"


def build(
    source: Source, conversion: Conversion, target: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], Report]:
    """The arrays of a conversion, and what became of every tensor.

    Args:
      target: path -> shape, of every parameter and statistic of the towers.

    Returns:
      Path -> f32 array, and the report.

    Raises:
      InputError: tensors that are missing, or neither used nor ignored; parameters that are not
        filled, do not exist, are filled twice, or whose shape differs; all are listed.
    """
    used: dict[str, list[str]] = {}
    missing: list[str] = []
    wrong: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    own = [entry.target for entry in conversion.entries]
    counts = collections.Counter(own)
    wrong += [f"{path} is filled twice" for path in sorted(counts) if counts[path] > 1]
    objectives = {path for path in own if path.startswith("objectives/")}
    unknown = sorted(set(own) - set(target) - objectives)
    wrong += [f"{path} does not exist here" for path in unknown]
    wrong += [f"{path} has no source" for path in sorted(set(target) - set(own))]
    for entry in conversion.entries:
        absent = [name for name in entry.sources if not source.has(name)]
        missing += absent
        for name in entry.sources:
            used.setdefault(name, []).append(entry.target)
        if absent or (entry.target not in target and entry.target not in objectives):
            continue
        try:
            made = entry.make(*map(source.tensor, entry.sources))
        except InputError:
            raise
        except (ValueError, IndexError, TypeError) as error:
            shapes = ", ".join(f"{name} {list(source.shape(name))}" for name in entry.sources)
            wrong.append(f"{entry.target} cannot be made of {shapes} ({error})")
            continue
        expected = target.get(entry.target, made.shape)
        if made.shape != tuple(expected):
            shapes = ", ".join(f"{name} {list(source.shape(name))}" for name in entry.sources)
            wrong.append(
                f"{entry.target} is {list(made.shape)} from {shapes}; expected {list(expected)}"
            )
            continue
        arrays[entry.target] = np.asarray(made, np.float32, order="C")
    ignored = _ignored([name for name in source.names if name not in used], conversion.ignored)
    left = sorted(set(source.names) - used.keys() - ignored.keys())
    faults = [
        *_fault("tensors are missing", dict.fromkeys(missing)),
        *_fault("tensors are neither used nor ignored", left),
        *_fault("parameters do not fit", wrong),
    ]
    if faults:
        raise InputError(f"{source.path}: {'; '.join(faults)}")
    return arrays, Report({name: tuple(paths) for name, paths in used.items()}, ignored)


def _ignored(left: Iterable[str], reasons: Mapping[str, str]) -> dict[str, str]:
    patterns = [(re.compile(pattern), reason) for pattern, reason in reasons.items()]
    found = {}
    for name in left:
        for pattern, reason in patterns:
            if pattern.fullmatch(name):
                found[name] = reason
                break
    return found


def _fault(what: str, names: Iterable[str]) -> list[str]:
    listed = list(names)
    return [f"{len(listed)} {what}: {', '.join(listed)}"] if listed else []
