"""Presets, and changes of them: what `--config=FILE[:VARIANT,...]` and `--config.KEY=TEXT` mean.

Every key that `mmrl.config.validate` accepts can be changed, also one that the preset does not
list. The rules are:

* `--config.towers.image.name=resnet` chooses another module. The options that the preset gives to
  the earlier module are dropped, and a note says so; the new module has its own defaults. What
  belongs to the tower itself, such as `size` and `heads`, stays. The order of the arguments does
  not matter: `--config.towers.image.depth=50` is an option of resnet.
* `--config.towers.text.name=weights/minilm`, the folder of an encoder, chooses the module and all
  options of its tower of the same kind, with `init` that folder. Heads of the tower here stay, and
  its length if it is shorter; a note says so. In a preset, the keys given beside such a name count
  before those of the folder.
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
import contextlib
import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from mmrl import build, starts, values, wiring
from mmrl import config as configs
from mmrl.config import MODULES, Place
from mmrl.starts import Start
from mmrl.types import InputError
from mmrl.values import REQUIRED, Option

Change = tuple[str, str]
"""A dotted key without "config.", and the text given for it."""

Read = Callable[[str, str], Start]
"""(config key, folder) -> what the folder of an encoder says, see `starts.read`."""

# What stays of a tower, beside the keys of `config.MODULES`, when a folder takes its place.
_STAYING = ("heads", "head", "length")

# The folder that holds the package `configs`: `mmrl/shipped` in a wheel, in a clone its root.
_IN_WHEEL = Path(__file__).resolve().parent / "shipped"
_ROOT = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_WHEEL.parent.parent


class Preset(NamedTuple):
    """A config file that is shipped.

    Attributes:
      given: what to write after --config=: "configs/pretrain.py" in the root of a clone, elsewhere
        "pretrain".
      title: the first line of its docstring. variants: name -> what it is.
    """

    given: str
    title: str
    variants: Mapping[str, str]


def shipped() -> list[Preset]:
    """The presets of mmrl, from their docstrings and VARIANTS; no file is executed."""
    in_clone = Path.cwd() == _ROOT
    found = []
    for file in sorted((_ROOT / "configs").rglob("*.py")):
        if file.stem == "__init__":
            continue
        title = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]
        name = file.relative_to(_ROOT if in_clone else _ROOT / "configs")
        given = name if in_clone else name.with_suffix("")
        found.append(Preset(given.as_posix(), title, _variants(file)))
    return found


def find(given: str) -> Path:
    """The file of a preset: one that exists, or one that is shipped, by name.

    Shipped presets are named from every folder as in a clone, "configs/recipes/vit_b16.py", or
    briefly, "recipes/vit_b16". A file in the current folder comes first.

    Raises:
      InputError: neither; names the shipped one with the most similar name, or all.
    """
    file = Path(given)
    if file.is_file():
        return file
    named = _ROOT / "configs" / f"{_name(given)}.py"
    # A name with ".." or a root would leave the folder of presets.
    outside = ".." in file.parts or file.is_absolute() or named.stem == "__init__"
    if outside or not named.is_file():
        offered = {_name(preset.given): preset.given for preset in shipped()}
        close = difflib.get_close_matches(_name(given), offered, 1)
        if close:
            hint = f" (did you mean {offered[close[0]]!r}?); `python -m mmrl.main --help` lists all"
        else:
            hint = f"; {names()}"
        raise InputError(f"--config={given}: there is no file {given!r}{hint}")
    return named


def _name(given: str) -> str:
    """The brief name "recipes/vit_b16" of "configs/recipes/vit_b16.py"."""
    return given.removesuffix(".py").removeprefix("configs/")


@contextlib.contextmanager
def _importable(file: Path) -> Iterator[None]:
    """Lets a config file import those beside it, and `configs`, wherever it is read.

    The packages of the file itself come first: a folder `configs` of the user would otherwise hide
    the shipped one, which presets import. Those of mmrl come last.
    """
    top = file.resolve().parent
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    own = [str(top.parent)] if (top / "__init__.py").is_file() else []
    loaded = sys.modules.get(top.name) if own else None
    if loaded is not None and top != Path(getattr(loaded, "__file__", None) or "").resolve().parent:
        for name in [one for one in sys.modules if one.partition(".")[0] == top.name]:
            del sys.modules[name]
    before = list(sys.path)
    sys.path[:] = [*own, *before, str(_ROOT)]
    try:
        yield
    finally:
        sys.path[:] = before


def _variants(file: Path) -> dict[str, str]:
    """The dict VARIANTS of a preset, see `_stated`."""
    for node in ast.parse(file.read_text("utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="VARIANTS")], value=given):
                return _stated(given, file)
    return {}


def _stated(node: ast.expr, file: Path) -> dict[str, str]:
    """A dict that is stated, or taken from a preset beside the file, or both joined by "|"."""
    match node:
        case ast.Attribute(value=ast.Name(id=other)):
            return _variants(file.with_name(f"{other}.py"))
        case ast.BinOp(left=one, op=ast.BitOr(), right=two):
            return _stated(one, file) | _stated(two, file)
    return ast.literal_eval(node)


def names() -> str:
    """The shipped presets in one line, for messages."""
    return f"presets: {', '.join(preset.given for preset in shipped())}"


def load(
    given: str, say: Callable[[str], None] = lambda line: None, read: Read = starts.read
) -> ml_collections.ConfigDict:
    """The config that "FILE.py" or "FILE.py:VARIANT,..." makes; `find` says what FILE may be.

    Towers that name the folder of an encoder get its options, see `expand`.

    Args:
      say: takes one line for each such tower. read: reads their folders.

    Raises:
      InputError: no such file, a file without `get_config`, or one that fails.
    """
    name, colon, variant = given.partition(":")
    where, file = f"--config={given}", find(name)
    spec = importlib.util.spec_from_file_location("mmrl_preset", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{where}: expected a Python file; {names()}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with _importable(file):
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
    for note in expand(config, read):
        say(note)
    return config


def expand(config: ml_collections.ConfigDict, read: Read = starts.read) -> list[str]:
    """Replaces names of towers that are folders of encoders, in place, by what these say.

    Returns:
      One line for each.

    Raises:
      InputError: no such folder, or none with a tower of the same kind.
    """
    notes = []
    with config.unlocked():
        for name, given in config.towers.items():
            folder = given.get("name")
            if starts.is_folder(folder):
                own = {key: value for key, value in given.to_dict().items() if key != "name"}
                notes.append(_start_from(read, config, name, folder, own))
    return notes


def _start_from(
    read: Read,
    config: ml_collections.ConfigDict,
    name: str,
    folder: str,
    kept: Mapping[str, Any],
    at_most: Sequence[str] = (),
) -> str:
    """Sets config.towers.NAME to what a folder says, but for the options that are kept.

    Args:
      at_most: those that are kept only if they are less than there.

    Returns:
      A sentence about it.
    """
    node, where = config.towers[name], f"config.towers.{name}"
    found = read(f"{where}.name", folder)
    _, options = found.tower(f"{where}.name", name, _kind_of(name, node, found))
    less = {key for key in at_most if key in kept and kept[key] < options.get(key, 0)}
    kept = {key: one for key, one in kept.items() if key not in at_most or key in less}
    # `head` is the kind of those heads alone that stand beside it.
    options = {key: one for key, one in options.items() if key != "head" or "heads" not in kept}
    for key in list(node):
        del node[key]
    node.update(configs.frozen({**options, "init": folder, **kept}))
    note = f"{where}: {options['name']} of {folder}"
    both = [key for key in kept if key in options and kept[key] != options[key]]
    if both:
        listed = (f"{key}={_brief(kept[key])} (there {_brief(options[key])})" for key in both)
        note += f", but {', '.join(listed)}"
    own = config.towers[name].get("channels", 1)
    if found.colour == "rgb" and own == 3 and config.data.get("colour") == "as_stored":
        config.data.colour = "rgb"
        note += "; data.colour=rgb"
    here = config.data.get("resize", "")
    if "size" in options and found.resize not in ("", here):
        note += f"; its images had data.resize={found.resize}, here they have {here}"
    return note


def _kind_of(name: str, node: Mapping[str, Any], found: Start) -> str:
    """The kind of a tower that is to start from a folder.

    It is stated, or that of the encoder so far, or that of the tower of the same name there, or of
    the only one.
    """
    known = node.get("name") and not starts.is_folder(node["name"])
    if node.get("kind") or known:
        return wiring.kind_of(name, node)
    kinds = found.kinds
    if name in kinds or len(kinds) == 1:
        return kinds.get(name) or next(iter(kinds.values()))
    if name in kinds.values():
        return name
    raise InputError(
        f"config.towers.{name}.name={found.folder}: the folder has several towers; state "
        f"config.towers.{name}.kind beside it, one of: {', '.join(sorted(set(kinds.values())))}"
    )


def _brief(value: Any) -> str:
    return values.show(configs.plain(value))


def split(argument: str) -> Change:
    """--config.KEY=TEXT as (KEY, TEXT).

    Raises:
      InputError: no "=".
    """
    key, equals, text = argument.partition("=")
    if not equals:
        raise InputError(f"{argument}: expected {key}=VALUE")
    return key.lstrip("-").removeprefix("config."), text


def check_early(changes: Iterable[Change]) -> None:
    """Refuses changes that no preset could take, without the time that a preset takes to load.

    These are unknown keys beside the modules, and values of another type than such a key accepts;
    what depends on the modules of a preset, `change` refuses.

    Raises:
      InputError: as of `change`.
    """
    for key, text in changes:
        what = f"--config.{key}={text}"
        if sentence := configs.moved(key):
            raise InputError(f"{what}: {sentence}")
        known: Any = configs.KEYS
        path = ""
        for part in key.split("."):
            if path in MODULES or not isinstance(known, Mapping):
                break
            if part not in known:
                raise _unknown_key(what, path, part, known)
            known, path = known[part], f"{path}.{part}".lstrip(".")
        if path == key and _is_value(path, known):
            values.parse(what, text, known.accepts)


def change(
    config: ml_collections.ConfigDict,
    changes: Iterable[Change],
    read: Read = starts.read,
) -> list[str]:
    """Changes a config in place, see the module's docstring.

    Args:
      read: reads folders of encoders.

    Returns:
      One line for each module that was replaced by another: what that dropped; and for each tower
      that starts from a folder.

    Raises:
      InputError: an unknown key or name, or a value of another type than the key accepts.
    """
    notes: list[str] = []
    with config.unlocked():
        for key, text in sorted(changes, key=_rank):
            notes += _change(config, key, text, read)
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


def _change(config: ml_collections.ConfigDict, key: str, text: str, read: Read) -> Iterator[str]:
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
        yield from _replace(what, config, node, key, inner, text, read)
        return
    if place is not None and last == place.chooser:
        if path.startswith("towers.") and starts.is_folder(text):
            stays = {*place.beside, *_STAYING} - {"init"}
            kept = {key: one for key, one in node.to_dict().items() if key in stays}
            name = path.partition(".")[2]
            yield _start_from(read, config, name, text, kept, at_most=("length",))
            return
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
        raise _unknown_key(what, path, part, known)
    return known[part]


def _unknown_key(what: str, path: str, part: str, known: Iterable[str]) -> InputError:
    kind = f"key in {f'config.{path}'.rstrip('.')}"
    return InputError(f"{what}: {build.unknown(kind, part, sorted(known))}")


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
    what: str,
    config: ml_collections.ConfigDict,
    node: Any,
    key: str,
    known: Any,
    text: str,
    read: Read,
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
        # The kind says which tower of a folder is meant, so it comes before the name.
        first = {key: one for key, one in given.items() if one_of_many and key == "kind"}
        node[own] = ml_collections.ConfigDict(first)
    elif place is not None and not place.beside:
        for option in place.own(node[own]):
            del node[own][option]
    items = [(f"{key}.{name}", values.show(value)) for name, value in given.items()]
    for inner, inner_text in sorted(items, key=_rank):
        yield from _change(config, inner, inner_text, read)
