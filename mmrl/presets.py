"""Presets, and changes of them: what `--config=FILE[:VARIANT,...]` and `--config.KEY=TEXT` mean.

Every key that `mmrl.config.validate` accepts can be changed, also one that the preset does not
list. The rules are:

* `--config.towers.image.name=resnet` chooses another module. The options that the preset gives to
  the earlier module are dropped, and a note says so; the new module has its own defaults. What
  belongs to the tower itself, such as `size` and `heads`, stays. The order of the arguments does
  not matter: `--config.towers.image.depth=50` is an option of resnet.
* `--config.objectives.siglip.weight=1` adds an objective that the preset does not have, and
  `--config.evaluators.zero_shot={}` adds an evaluator with its defaults.
* Towers, inputs, objectives and evaluators have free names, and `name` says which module one is:
  `--config.objectives.views.name=global_contrastive
  --config.objectives.views.reads.text=image@second.embedding` adds a second contrast.
* `--config.objectives.local_contrastive=none` removes one of them.
* A mapping given for one of them replaces all its options; one given for `towers`, `inputs`,
  `objectives` or `evaluators` replaces all of them; one given for other keys changes those that
  it names.

If a key is given twice, the last one counts.
"""

import ast
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from mmrl import build, values
from mmrl import config as configs
from mmrl.config import MODULES, Place
from mmrl.types import InputError
from mmrl.values import REQUIRED, Option

Change = tuple[str, str]
"""A dotted key without "config.", and the text given for it."""

_ROOT = Path(__file__).resolve().parent.parent


class Preset(NamedTuple):
    """A config file that is shipped."""

    path: str
    title: str
    variants: Mapping[str, str]  # name -> what it is


def shipped() -> list[Preset]:
    """The presets of this repository, from their docstrings and VARIANTS; no file is executed."""
    here = Path.cwd()
    found = []
    for file in sorted((_ROOT / "configs").rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        if file.stem == "__init__":
            continue
        path = file.relative_to(here) if file.is_relative_to(here) else file
        title = (ast.get_docstring(tree) or "").partition("\n")[0]
        found.append(Preset(str(path), title, _variants(file)))
    return found


def _variants(file: Path) -> dict[str, str]:
    """The dict VARIANTS of a preset, stated there or taken from a preset beside it."""
    for node in ast.parse(file.read_text("utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="VARIANTS")], value=ast.Attribute() as other):
                assert isinstance(other.value, ast.Name)
                return _variants(file.with_name(f"{other.value.id}.py"))
            case ast.Assign(targets=[ast.Name(id="VARIANTS")], value=given):
                return ast.literal_eval(given)
    return {}


def names() -> str:
    """The shipped presets in one line, for messages."""
    return f"presets: {', '.join(preset.path for preset in shipped())}"


def load(given: str) -> ml_collections.ConfigDict:
    """The config that "FILE.py" or "FILE.py:VARIANT,..." makes.

    Raises:
      InputError: no such file, a file without `get_config`, or one that fails.
    """
    file, colon, variant = given.partition(":")
    where = f"--config={given}"
    if not Path(file).is_file():
        raise InputError(f"{where}: there is no file {file!r}; {names()}")
    spec = importlib.util.spec_from_file_location("mmrl_preset", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{where}: expected a Python file; {names()}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        make = getattr(module, "get_config", None)
        if make is None:
            raise InputError(f"{where}: the file has no function get_config")
        if colon and not inspect.signature(make).parameters:
            raise InputError(f"{where}: this preset has no variants")
        config = make(variant) if colon else make()
    except InputError as error:
        raise InputError(str(error)) from None
    except Exception as error:  # whatever the code of the file raises
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == spec.origin]
        place = f" (line {lines[-1]} of {file})" if lines else ""
        raise InputError(f"{where}: {type(error).__name__}: {error}{place}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"{where}: get_config returned {config!r}; expected a ConfigDict")
    return config


def split(argument: str) -> Change:
    """--config.KEY=TEXT as (KEY, TEXT).

    Raises:
      InputError: no "=".
    """
    key, equals, text = argument.partition("=")
    if not equals:
        raise InputError(f"{argument}: expected {key}=VALUE")
    return key.lstrip("-").removeprefix("config."), text


def change(config: ml_collections.ConfigDict, changes: Iterable[Change]) -> list[str]:
    """Changes a config in place, see the module's docstring.

    Returns:
      One line for each module that was replaced by another: what that dropped.

    Raises:
      InputError: an unknown key or name, or a value of another type than the key accepts.
    """
    notes: list[str] = []
    with config.unlocked():
        for key, text in sorted(changes, key=_rank):
            notes += _change(config, key, text)
    return notes


def _rank(one: Change) -> tuple[int, bool, bool]:
    """Short keys first, as they replace what longer ones change.

    Of one length: names of modules first, then the keys beside them, then options of modules.
    """
    path, _, last = one[0].rpartition(".")
    place = _place(path)
    if place is None:
        return len(path.split(".")), True, True
    return len(path.split(".")), place.chooser != last, last not in place.beside


def _change(config: ml_collections.ConfigDict, key: str, text: str) -> Iterator[str]:
    what = f"--config.{key}={text}"
    if sentence := configs.moved(key):
        raise InputError(f"{what}: {sentence}")
    node, path, (*parents, last) = config, "", key.split(".")
    for number, part in enumerate(parents):
        inner = _find(what, path, node, part, [*parents[number + 1 :], last][:1])
        path = f"{path}.{part}".lstrip(".")
        if _is_value(path, inner):
            _set(what, node, part, inner, [*parents[number + 1 :], last], text)
            return
        if part not in node:  # a tower, input, objective or evaluator that is added
            node[part] = ml_collections.ConfigDict()
        node = node[part]
    inner = _find(what, path, node, last, _names_of(text))
    place = _place(path)
    if not _is_value(f"{path}.{last}".lstrip("."), inner):
        yield from _replace(what, config, node, key, inner, text)
        return
    if place is not None and last == place.chooser:
        yield from _choose(what, place, path, node, text)
    _set(what, node, last, inner, [], text)


def _names_of(text: str) -> list[str]:
    """The keys of a text that is a mapping."""
    given = values.literal(text)
    return list(given) if isinstance(given, Mapping) else []


def _find(what: str, path: str, node: Any, part: str, within: Sequence[str]) -> Any:
    """What the key `part` of a node is: an Option, a mapping of keys, or a Place.

    Args:
      within: keys that are given directly below `part`.
    """
    place = MODULES.get(path)
    if place is not None and place.many:
        # A free name is new with the name of its module alone.
        if part in node or place.chooser in within:
            return place
        modules = build.choices(place.kind) if place.named else ()
        if part in modules:
            return place
        message = build.unknown(path.removesuffix("s"), part, sorted({*node, *modules}))
        raise InputError(f"{what}: {message}; a new one needs config.{path}.{part}.{place.chooser}")
    place = _place(path)
    if place is not None and part == place.chooser:
        return values.setting("", "")
    if place is not None and part in place.beside:
        return place.beside[part]
    known = _known(path, node)
    if part not in known:
        kind = f"key in {f'config.{path}'.rstrip('.')}"
        raise InputError(f"{what}: {build.unknown(kind, part, sorted(known))}")
    return known[part]


def _known(path: str, node: Any) -> Mapping[str, Any]:
    """The keys that a node may have."""
    place = _place(path)
    if place is not None:
        chooser = {str(place.chooser): values.setting("", "")}
        name = place.name(path.rpartition(".")[2], node)
        return {**(place.options(name, node) if name else {}), **chooser, **place.beside}
    known: Any = configs.KEYS
    for part in path.split(".") if path else ():
        known = known[part]
    return known


def _place(path: str) -> Place | None:
    """The place whose module a path holds, alone or as one of many; None for other paths."""
    place = MODULES.get(path)
    if place is not None and not place.many:
        return place
    place = MODULES.get(path.rpartition(".")[0])
    return place if place is not None and place.many else None


def _is_value(path: str, known: Any) -> bool:
    """Whether a key holds a value; else it holds keys, a module or modules."""
    return isinstance(known, Option) and path not in MODULES


def _set(what: str, node: Any, name: str, option: Option, within: Sequence[str], text: str) -> None:
    """Sets an option, or the entry `within` of one that is a mapping."""
    current = node.get(name)
    if current is None and option.default is not REQUIRED:
        current = option.default
    value = _with_entry(what, current, option.accepts, within, text)
    with node.ignore_type():  # names may give way to names with weights
        node[name] = configs.frozen(value)


def _with_entry(what: str, current: Any, accepts: Any, within: Sequence[str], text: str) -> Any:
    if not within:
        return values.parse(what, text, accepts)
    inner = Any if accepts is Any else values.mapping_of(accepts)
    if inner is None or (current is not None and not hasattr(current, "items")):
        raise InputError(
            f"{what}: the value {current!r} has no keys; expected {values.name(accepts)}"
        )
    entries = dict(current.items()) if current is not None else {}
    first, *rest = within
    entries[first] = _with_entry(what, entries.get(first), inner, rest, text)
    return entries


def _choose(what: str, place: Place, path: str, node: Any, name: str) -> Iterator[str]:
    """Drops the options of the module chosen so far when `name` is another."""
    try:
        build.find(place.kind, name)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    before = place.name(path.rpartition(".")[2], node)
    if name == before:
        return
    kept = place.kept(node, name) if place.kept is not None and before else ()
    dropped = {key: value for key, value in place.own(node).items() if key not in kept}
    for option in dropped:
        del node[option]
    if dropped:
        listed = ", ".join(f"{key}={values.show(dropped[key])}" for key in sorted(dropped))
        yield f"config.{path}: {name} instead of {before}; dropped its options {listed}"


def _replace(
    what: str, config: ml_collections.ConfigDict, node: Any, key: str, known: Any, text: str
) -> Iterator[str]:
    """Sets a key that holds keys, a module or modules from a mapping."""
    own = key.rpartition(".")[2]
    one_of_many = isinstance(known, Place)
    accepts = Mapping[str, Any] | None if one_of_many else Mapping[str, Any]
    given = values.parse(what, text, accepts)
    if given is None:
        if own in node:
            del node[own]
        return
    place = known if one_of_many else MODULES.get(key)
    if one_of_many or (place is not None and place.many):
        node[own] = ml_collections.ConfigDict()
    elif place is not None and not place.beside:
        for option in place.own(node[own]):
            del node[own][option]
    items = [(f"{key}.{name}", values.show(value)) for name, value in given.items()]
    for inner, inner_text in sorted(items, key=_rank):
        yield from _change(config, inner, inner_text)
