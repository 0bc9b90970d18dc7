"""Names of encodings, and what a config reads by them: which towers encode which inputs.

    [average/]<tower>[@<input>].<feature>        image.embedding, text@perturbed.embedding

A name without an input means the tower's own: "image.embedding" is "image@image.embedding" where
the tower `image` reads the input `image`. "average/" in front means the averaged weights, see
config.average. The name of a fusion stands where that of a tower does: "fused.words" is made of
what config.fusions.fused reads, and "fused@masked.words" of the same, with the input `masked` in
place of the input of its kind. Arrays of a batch are named <input>.<array>, such as
"perturbed.valid".
"""

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mmrl import build
from mmrl.types import InputError

_PATTERN = re.compile(
    r"(?P<average>average/)?(?P<tower>[a-z0-9_]+)(@(?P<input>[a-z0-9_]+))?\.(?P<feature>[a-z0-9_]+)"
)

TOWER_KEYS = ("name", "kind", "input", "frozen", "init", "lora")
"""Keys of config.towers.NAME that are options neither of the tower nor of its encoder."""

# Options that the learner gives to towers and encoders.
GIVEN_TO_TOWERS = ("encoder", "make_rngs", "dtype", "param_dtype")
GIVEN_TO_ENCODERS = ("rngs", "dtype", "param_dtype")
# To objectives: facts of what they read, see `learner.make`.
GIVEN_TO_OBJECTIVES = ("rngs", "names", "widths", "vocab_size")
# To fusions, and to derived inputs: facts of the tower that encodes them, None where it has none.
GIVEN_TO_FUSIONS = ("widths", "dtype", "param_dtype", "make_rngs")
GIVEN_TO_DERIVED = ("rngs", "kinds", "patch_size", "vocab_size", "mask_token", "special_tokens")

# Arrays of a batch that belong to no input.
COMMON = ("group", "index")


class Name(NamedTuple):
    """A parsed name of an encoding.

    Attributes:
      tower: of a tower, or of a fusion.
      input: "" for the tower's own, and for a fusion of what its config reads.
      feature: what is read.
      average: whether the averaged weights make it.
    """

    tower: str
    input: str
    feature: str
    average: bool = False

    def __str__(self) -> str:
        own = f"{self.tower}{'@' + self.input if self.input else ''}.{self.feature}"
        return f"average/{own}" if self.average else own


def parse(text: str) -> Name:
    """Parses "[average/]<tower>[@<input>].<feature>".

    Raises:
      InputError: another form.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise InputError(
            f"{text!r} is no name of an encoding; expected [average/]<tower>[@<input>].<feature>"
        )
    return Name(match["tower"], match["input"] or "", match["feature"], bool(match["average"]))


class DerivedInput(NamedTuple):
    """A derived input, see `mmrl.models.derived.base`.

    Attributes:
      of: the input whose arrays it carries on.
      reads: (argument, encoding) pairs. arrays: (argument, array of the batch) pairs.
      couples: whether a row of it depends on other rows.
      selects: whether its encodings are those of other rows of `of`.
    """

    name: str
    of: str
    reads: tuple[tuple[str, Name], ...] = ()
    arrays: tuple[tuple[str, str], ...] = ()
    couples: bool = False
    selects: bool = False


class Joined(NamedTuple):
    """A fusion, see `mmrl.models.fusion.base`; `reads` and `arrays` as of DerivedInput.

    Attributes:
      optional: arguments that a row may lack.
    """

    name: str
    reads: tuple[tuple[str, Name], ...]
    arrays: tuple[tuple[str, str], ...] = ()
    optional: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Graph:
    """What can be encoded, and from what; hashable, so that an NNX module may hold it.

    Attributes:
      own: (tower, the input that it reads unless a name says otherwise) pairs.
      derived: the derived inputs. fusions: the fusions.
      kinds: (input, kind of the towers that may encode it) pairs.
    """

    own: tuple[tuple[str, str], ...]
    derived: tuple[DerivedInput, ...] = ()
    fusions: tuple[Joined, ...] = ()
    kinds: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, own: "Mapping[str, str] | Graph") -> "Graph":
        """A graph as it is, or one of towers alone: tower -> its own input."""
        return own if isinstance(own, Graph) else cls(tuple(own.items()))

    def input(self, name: str) -> DerivedInput | None:
        """The derived input of a name; None for an input that is made from records."""
        return next((one for one in self.derived if one.name == name), None)

    def fusion(self, name: str) -> Joined | None:
        """The fusion of a name; None if there is none."""
        return next((one for one in self.fusions if one.name == name), None)

    def carried(self, name: str) -> tuple[str, ...]:
        """The derived inputs that an input is, or carries on, each before the one it carries on."""
        derived = self.input(name)
        return () if derived is None else (name, *self.carried(derived.of))

    def recorded(self, name: str) -> str:
        """The input made from records that an input carries on, or is."""
        derived = self.input(name)
        return name if derived is None else self.recorded(derived.of)

    def resolve(self, text: "str | Name") -> Name:
        """A parsed name with its input filled in.

        Raises:
          InputError: another form, or neither a tower nor a fusion.
        """
        name = parse(text) if isinstance(text, str) else text
        own = dict(self.own)
        if name.tower in own:
            return name._replace(input=name.input or own[name.tower])
        if self.fusion(name.tower) is None:
            offered = sorted([*own, *(one.name for one in self.fusions)])
            raise InputError(build.unknown(f"tower in {str(text)!r}", name.tower, offered))
        return name

    def reads(self, name: Name) -> dict[str, Name]:
        """What a fusion reads for one of its features: argument -> encoding.

        Raises:
          InputError: `name` has an input that takes the place of none, or of several.
        """
        replaced = self._replaced(name)
        return {
            argument: one._replace(
                input=name.input if one.input == replaced else one.input,
                average=one.average or name.average,
            )
            for argument, one in self._joined(name).reads
        }

    def towers_of(self, name: Name) -> tuple[Name, ...]:
        """The encodings of towers that an encoding is made of: itself, or what a fusion reads."""
        if self.fusion(name.tower) is None:
            return (name,)
        return tuple(own for one in self.reads(name).values() for own in self.towers_of(one))

    def arrays(self, name: Name) -> dict[str, str]:
        """The arrays that a fusion reads for one of its features: argument -> array."""
        found, replaced = {}, self._replaced(name)
        for argument, array in self._joined(name).arrays:
            own, _, key = array.partition(".")
            found[argument] = f"{name.input}.{key}" if own == replaced else array
        return found

    def optional(self, fusion: str) -> tuple[str, ...]:
        """Arguments of a fusion that a row may lack."""
        found = self.fusion(fusion)
        return () if found is None else found.optional

    def _joined(self, name: Name) -> Joined:
        found = self.fusion(name.tower)
        assert found is not None
        return found

    def _replaced(self, name: Name) -> str:
        """The input of a fusion in whose place that of a name stands; "" for none."""
        if not name.input:
            return ""
        kinds = dict(self.kinds)
        kind = kinds.get(name.input, "")
        inputs = {one.input for _, one in self._joined(name).reads}
        alike = sorted(one for one in inputs if kind and kinds.get(one) == kind)
        if len(alike) != 1:
            raise InputError(
                f"{str(name)!r}: the fusion {name.tower!r} reads {', '.join(sorted(inputs))}; "
                f"expected exactly one of the kind of {name.input!r}, which is "
                f"{kind or 'unknown'}"
            )
        return alike[0]


class Derive(NamedTuple):
    """A step of encoding: makes a derived input."""

    name: str


class Encode(NamedTuple):
    """A step of encoding: a tower encodes inputs; (input, features) pairs."""

    tower: str
    wanted: tuple[tuple[str, tuple[str, ...]], ...]
    average: bool


class Select(NamedTuple):
    """A step of encoding: takes other rows of an encoding, as a derived input says."""

    name: Name


class Fuse(NamedTuple):
    """A step of encoding: a fusion makes features of one instance."""

    name: str
    input: str
    features: tuple[str, ...]
    average: bool


Step = Derive | Encode | Select | Fuse


@dataclasses.dataclass(frozen=True)
class Wiring:
    """What is encoded and read; hashable, so that an NNX module may hold it.

    Attributes:
      graph: what can be encoded.
      encodings: the full names of all encodings that are read, sorted.
      arrays: the arrays of the batch that are read as they are, sorted.
    """

    graph: Graph
    encodings: tuple[Name, ...]
    arrays: tuple[str, ...]

    @classmethod
    def of(
        cls,
        own: Mapping[str, str] | Graph,
        encodings: Iterable[str | Name],
        arrays: Iterable[str] = (),
    ) -> "Wiring":
        """Resolves names.

        Args:
          own: a graph, or tower -> the input it reads unless a name says otherwise.

        Raises:
          InputError: a name of another form, or of a tower that does not exist; encodings that
            need each other.
        """
        graph = Graph.of(own)
        full = {graph.resolve(text) for text in encodings}
        made = cls(graph, tuple(sorted(full)), tuple(sorted(set(arrays))))
        _ = made.steps
        return made

    @property
    def own(self) -> tuple[tuple[str, str], ...]:
        """As of Graph."""
        return self.graph.own

    @property
    def names(self) -> tuple[Name, ...]:
        """All encodings that are made: those that are read, and those that these need; sorted."""
        return self._plan.names

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of encoding whose rows are independent of each other, in order."""
        return self._plan.steps

    @property
    def coupled(self) -> tuple[Step, ...]:
        """The steps after these: derived inputs that couple rows, and what needs them."""
        return self._plan.coupled

    @property
    def kept(self) -> tuple[frozenset[str], frozenset[str]]:
        """What must be kept of `steps`, and of both: names of encodings and derived arrays."""
        return self._plan.kept

    @property
    def averages(self) -> bool:
        """Whether any encoding is made by the averaged weights."""
        return any(name.average for name in self.names)

    @property
    def derived(self) -> tuple[str, ...]:
        """The derived inputs that are made."""
        return tuple(step.name for step in self.all_steps if isinstance(step, Derive))

    @property
    def fused(self) -> tuple[str, ...]:
        """The fusions that are made."""
        steps = (step.name for step in self.all_steps if isinstance(step, Fuse))
        return tuple(dict.fromkeys(steps))

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """All steps of encoding in order."""
        return self.steps + self.coupled

    @functools.cached_property
    def _plan(self) -> "_Plan":
        return _Planner(self).plan()

    def wanted(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """tower -> input -> features, towers in their order, a tower's own input first."""
        result: dict[str, dict[str, tuple[str, ...]]] = {}
        for tower, own in self.own:
            names = [name for name in self.names if name.tower == tower]
            found = _by_input(names, own)
            if found:
                result[tower] = dict(found)
        return result

    def inputs_of(self, name: Name) -> tuple[str, ...]:
        """The inputs without which a row does not have an encoding.

        A selected row is present if the selection says so.
        """
        if self.graph.fusion(name.tower) is not None:
            optional = self.graph.optional(name.tower)
            reads = (one for key, one in self.graph.reads(name).items() if key not in optional)
            return tuple(dict.fromkeys(i for one in reads for i in self.inputs_of(one)))
        found = [name.input]
        while (derived := self.graph.input(found[-1])) and not derived.selects:
            found.append(derived.of)
        return tuple(found)

    def readers(self) -> dict[str, str | None]:
        """input -> the first tower that encodes it; None for inputs whose arrays alone are read.

        Of derived inputs, the inputs from records that they carry on.
        """
        found: dict[str, str | None] = {}
        for tower, inputs in self.wanted().items():
            for one in inputs:
                found.setdefault(self.graph.recorded(one), tower)
        for array in self._plan.arrays:
            if array not in COMMON:
                found.setdefault(self.graph.recorded(array.partition(".")[0]), None)
        for one in self.derived:
            found.setdefault(self.graph.recorded(one), None)
        return found

    def recorded(self) -> dict[str, tuple[str, ...]]:
        """tower -> the inputs from records that it encodes, or whose derived inputs it does."""
        return {
            tower: tuple(dict.fromkeys(map(self.graph.recorded, inputs)))
            for tower, inputs in self.wanted().items()
        }


def _by_input(names: Iterable[Name], own: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(input, features) pairs of names, that of the tower's own input first."""
    features: dict[str, dict[str, None]] = {}
    for name in names:
        features.setdefault(name.input, {})[name.feature] = None
    order = sorted(features, key=lambda one: (one != own, one))
    return tuple((one, tuple(sorted(features[one]))) for one in order)


class _Plan(NamedTuple):
    """What `Wiring` states."""

    names: tuple[Name, ...]
    arrays: tuple[str, ...]
    steps: tuple[Step, ...]
    coupled: tuple[Step, ...]
    kept: tuple[frozenset[str], frozenset[str]]


class _Planner:
    """Finds all that is needed for what is read, and an order in which to make it.

    An item is an encoding, or the name of an input. Its level is above those of all that it needs,
    but a tower encodes an input at the level of that input, so that inputs share its pass.
    """

    def __init__(self, wired: Wiring) -> None:
        self._wired, self._graph = wired, wired.graph
        self._levels: dict[str | Name, tuple[int, bool]] = {}

    def plan(self) -> _Plan:
        """Resolves everything.

        Raises:
          InputError: encodings that need each other.
        """
        arrays = self._wired.arrays
        for name in self._wired.encodings:
            self._level(name, ())
        for array in arrays:
            self._level(array.partition(".")[0] if "." in array else "", ())
        names = sorted(item for item in self._levels if isinstance(item, Name))
        derived = [item for item in self._levels if isinstance(item, str) and self._made(item)]
        more = {array for name in derived for _, array in self._made(name).arrays}
        for name in names:
            if self._graph.fusion(name.tower) is not None:
                more |= set(self._graph.arrays(name).values())
        every = tuple(sorted({*arrays, *more}))
        steps = self._steps(names, derived)
        first = tuple(step for _, couples, step in steps if not couples)
        last = tuple(step for _, couples, step in steps if couples)
        read = self._read(self._wired.encodings) | self._derived_of(arrays)
        return _Plan(tuple(names), every, first, last, (read | self._needed(last), read))

    def _read(self, names: Iterable[Name]) -> frozenset[str]:
        """Encodings, and `present` of the derived inputs that they need."""
        names = tuple(names)
        inputs = {one for name in names for one in self._wired.inputs_of(name) if self._made(one)}
        return frozenset({*map(str, names), *(f"{one}.present" for one in inputs)})

    def _made(self, name: str) -> Any:
        return self._graph.input(name)

    def _derived_of(self, arrays: Iterable[str]) -> set[str]:
        """Where arrays of derived inputs may come from: their own, or what these carry on."""
        found = set()
        for array in arrays:
            own, _, key = array.partition(".")
            for one in self._graph.carried(own):
                found |= {f"{one}.{key}"} | ({f"{one}.rows"} if self._made(one).selects else set())
        return found

    def _arrays_of(self, name: str) -> set[str]:
        """All arrays that the derived inputs make that an input is, or carries on."""
        return {f"{one}." for one in self._graph.carried(name)}

    def _needs(self, item: str | Name) -> Iterator[str | Name]:
        """What an item is made of."""
        if isinstance(item, str):
            if derived := self._made(item):
                yield from (name for _, name in derived.reads)
                yield from (array.partition(".")[0] for _, array in derived.arrays if "." in array)
                yield derived.of
        elif self._graph.fusion(item.tower) is not None:
            yield from self._graph.reads(item).values()
            arrays = self._graph.arrays(item).values()
            yield from (array.partition(".")[0] for array in arrays if "." in array)
        else:
            yield item.input
            derived = self._made(item.input)
            if derived and derived.selects:
                yield item._replace(input=derived.of)

    def _level(self, item: str | Name, path: tuple[str, ...]) -> tuple[int, bool]:
        """The level of an item, and whether its rows depend on each other."""
        if item in self._levels:
            return self._levels[item]
        if str(item) in path:
            circle = " -> ".join([*path[path.index(str(item)) :], str(item)])
            raise InputError(f"encodings need each other: {circle}; expected no circle")
        below = [self._level(one, (*path, str(item))) for one in self._needs(item)]
        level = max((one for one, _ in below), default=0)
        couples = any(one for _, one in below)
        derived = self._made(item) if isinstance(item, str) else None
        if derived:
            level, couples = level + 1, couples or derived.couples
        elif not isinstance(item, str) and self._is_made_of_encodings(item):
            level += 1
        self._levels[item] = level, couples
        return level, couples

    def _is_made_of_encodings(self, name: Name) -> bool:
        derived = self._made(name.input)
        return self._graph.fusion(name.tower) is not None or bool(derived and derived.selects)

    def _steps(
        self, names: list[Name], derived: list[str]
    ) -> list[tuple[tuple[int, int], bool, Step]]:
        """((level, kind of step), whether it couples rows, step), in order."""
        found: list[tuple[tuple[int, int], bool, Step]] = []
        for one in derived:
            level, couples = self._levels[one]
            found.append(((level, 0), couples, Derive(one)))
        groups: dict[tuple[int, bool, bool, str], list[Name]] = {}
        fused: dict[tuple[int, bool, bool, str, str], list[str]] = {}
        for name in names:
            level, couples = self._levels[name]
            if self._graph.fusion(name.tower) is not None:
                key = (level, couples, name.average, name.tower, name.input)
                fused.setdefault(key, []).append(name.feature)
            elif self._is_made_of_encodings(name):
                found.append(((level, 2), couples, Select(name)))
            else:
                groups.setdefault((level, couples, name.average, name.tower), []).append(name)
        for tower, own in self._graph.own:
            for (level, couples, average, of), members in groups.items():
                if of == tower:
                    step = Encode(tower, _by_input(members, own), average)
                    found.append(((level, 1), couples, step))
        for (level, couples, average, of, given), features in fused.items():
            found.append(((level, 3), couples, Fuse(of, given, tuple(features), average)))
        return sorted(found, key=lambda one: one[0])

    def _needed(self, steps: Iterable[Step]) -> frozenset[str]:
        """The encodings and the arrays of derived inputs that some steps need."""
        found: set[str] = set()
        for step in steps:
            if isinstance(step, Derive):
                derived = self._made(step.name)
                found |= self._read(name for _, name in derived.reads)
                found |= self._derived_of(array for _, array in derived.arrays)
                found |= self._arrays_of(derived.of)
            elif isinstance(step, Encode):
                found |= {array for one, _ in step.wanted for array in self._arrays_of(one)}
            elif isinstance(step, Select):
                derived = self._made(step.name.input)
                found |= {str(step.name._replace(input=derived.of)), f"{step.name.input}."}
            else:
                name = Name(step.name, step.input, "", step.average)
                found |= {str(one) for one in self._graph.reads(name).values()}
                found |= self._derived_of(self._graph.arrays(name).values())
        return frozenset(found)


def redirected(
    where: str, defaults: Mapping[str, str], given: Mapping[str, Any] | None
) -> dict[str, str]:
    """The defaults with what a config redirects.

    Args:
      where: the config key to name in the message.
      defaults: argument -> name, or another argument, which it then follows.
      given: argument -> another name, for some of them.

    Raises:
      InputError: an argument that does not exist, or a name that is not a string.
    """
    for argument, name in (given or {}).items():
        if argument not in defaults:
            raise InputError(build.unknown(f"argument in {where}", argument, sorted(defaults)))
        if not isinstance(name, str):
            raise InputError(
                f"{where}.{argument}={name!r}; expected a name such as image.embedding"
            )
    own = {**defaults, **(given or {})}
    return {one: own[name] if (name := own[one]) in own else name for one in own}


def kind_of(name: str, given: Mapping[str, Any]) -> str:
    """The kind of tower of config.towers.NAME: `kind`, or the folder of its encoder.

    Raises:
      InputError: an encoder of another package without `kind`; an unknown encoder.
    """
    if given.get("kind"):
        return given["kind"]
    where = f"config.towers.{name}"
    if not given.get("name"):
        listed = ", ".join(build.choices("encoder"))
        raise InputError(f"{where} needs a name, its encoder; choices: {listed}")
    module = build.module_of("encoder", given["name"])
    if "." in given["name"]:
        raise InputError(
            f"{where}.name={given['name']!r} is not of mmrl; set {where}.kind, one of: "
            f"{', '.join(build.choices('tower'))}"
        )
    return module.split(".")[-2]


def own_options(kind: str) -> dict[str, Any]:
    """Options of a kind of tower, without those of its encoder."""
    found = build.options(build.find("tower", kind))
    return {key: one for key, one in found.items() if key not in GIVEN_TO_TOWERS}


def tower_options(
    name: str, given: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """config.towers.NAME -> (kind, options of the tower, options of its encoder).

    Raises:
      InputError: as `kind_of`.
    """
    kind = kind_of(name, given)
    of_tower = own_options(kind)
    own = {key: given[key] for key in given if key in of_tower}
    rest = {k: given[k] for k in given if k not in of_tower and k not in TOWER_KEYS}
    return kind, own, rest


def own_inputs(towers: Mapping[str, Any]) -> dict[str, str]:
    """Tower -> the input that it reads unless a name says otherwise."""
    found = {}
    for name, given in towers.items():
        target: Any = build.find("tower", kind_of(name, given))
        found[name] = given.get("input") or target.input
    return found


def chosen_module(name: str, given: Mapping[str, Any]) -> str:
    """The module of an objective, evaluator or input: its `name`, or its own key."""
    return given.get("name") or name


def graph(config: Mapping[str, Any]) -> Graph:
    """What the towers, derived inputs and fusions of a config can encode.

    Raises:
      InputError: an unknown module, argument or tower; a name that is taken.
    """
    own = own_inputs(config["towers"])
    derived, fusions = config.get("derived") or {}, config.get("fusions") or {}
    if not derived and not fusions:
        return Graph.of(own)
    of = {name: _carried_on(name, given) for name, given in derived.items()}
    _check_names(own, of, fusions, {*config["inputs"], *build.choices("input")})
    shell = Graph(
        tuple(own.items()),
        tuple(DerivedInput(name, of[name]) for name in derived),
        tuple(Joined(name, ()) for name in fusions),
    )
    made = []
    for one in shell.derived:
        target, reads, arrays = _reads(shell, "derived", one.name, derived[one.name])
        made.append(
            one._replace(reads=reads, arrays=arrays, couples=target.couples, selects=target.selects)
        )
    joined = []
    for name, given in fusions.items():
        target, reads, arrays = _reads(shell, "fusion", name, given)
        joined.append(Joined(name, reads, arrays, target.optional))
    return dataclasses.replace(
        shell,
        derived=tuple(made),
        fusions=tuple(joined),
        kinds=tuple(_kinds(config, shell).items()),
    )


def _check_names(
    own: Collection[str], of: Mapping[str, str], fusions: Collection[str], recorded: Collection[str]
) -> None:
    """Refuses names that are taken, and derived inputs that carry on nothing or each other."""
    for place, names, taken, what in (
        ("fusions", fusions, own, "a tower"),
        ("fusions", fusions, recorded, "an input of records"),
        ("derived", of, recorded, "an input of records"),
        ("derived", of, fusions, "a fusion"),
    ):
        for name in names:
            if name in taken:
                raise InputError(f"config.{place}.{name}: {name!r} is the name of {what}")
    for name in of:
        path = [name]
        while path[-1] in of:
            path.append(of[path[-1]])
            if path[-1] in path[:-1]:
                circle = " -> ".join(path)
                raise InputError(
                    f"derived inputs carry each other on: {circle}; expected no circle"
                )
        if path[-1] not in recorded:
            where = f"input in config.derived.{path[-2]}.of"
            raise InputError(build.unknown(where, path[-1], sorted({*recorded, *of})))


def _carried_on(name: str, given: Mapping[str, Any]) -> str:
    """The input whose arrays a derived input carries on."""
    target: Any = build.find("derived", chosen_module(name, given))
    return given.get("of") or target.of


def _reads(
    shell: Graph, kind: str, name: str, given: Mapping[str, Any]
) -> tuple[Any, tuple[tuple[str, Name], ...], tuple[tuple[str, str], ...]]:
    """The module of a derived input or a fusion, and the encodings and arrays that it reads."""
    target: Any = build.find(kind, chosen_module(name, given))
    where = f"config.{PLACES[kind]}.{name}.reads"
    chosen = redirected(where, {**target.reads, **target.batch}, given.get("reads"))
    encodings = tuple((key, shell.resolve(chosen[key])) for key in target.reads)
    return target, encodings, tuple((key, chosen[key]) for key in target.batch)


PLACES = {"derived": "derived", "fusion": "fusions", "objective": "objectives"}
"""Kind of a module that reads encodings -> its place in a config."""


def _kinds(config: Mapping[str, Any], shell: Graph) -> dict[str, str]:
    """input -> kind of the towers that may encode it, of all inputs of a config."""
    kinds = {}
    for name in sorted({*build.choices("input"), *config["inputs"]}):
        target: Any = build.find("input", chosen_module(name, config["inputs"].get(name, {})))
        kinds[name] = target.kind
    return kinds | {one.name: kinds.get(shell.recorded(one.name), "") for one in shell.derived}


def wire(
    config: Mapping[str, Any],
) -> tuple[Wiring, dict[str, dict[str, Name]], dict[str, dict[str, str]]]:
    """What the objectives of a config read; without objectives, one feature of every tower.

    Returns:
      The wiring; objective -> argument -> encoding; objective -> argument -> array of the batch.

    Raises:
      InputError: an argument or a tower that does not exist; encodings that need each other.
    """
    offered = graph(config)
    encodings: dict[str, dict[str, Name]] = {}
    arrays: dict[str, dict[str, str]] = {}
    for name, given in config["objectives"].items():
        _, reads, taken = _reads(offered, "objective", name, given)
        encodings[name], arrays[name] = dict(reads), dict(taken)
    names = {name for reads in encodings.values() for name in reads.values()}
    if not encodings:  # encoders that are not trained here
        names = {offered.resolve(f"{tower}.pooled") for tower, _ in offered.own}
    read = {name for reads in arrays.values() for name in reads.values()}
    return Wiring.of(offered, names, read), encodings, arrays


def evaluated(config: Mapping[str, Any]) -> list[str]:
    """The encodings of held-out records that the evaluators of a config read, by full name.

    Encodings of towers that do not exist are left out: an evaluator may accept their absence.

    Raises:
      InputError: an unknown evaluator or argument.
    """
    offered = graph(config)
    there = {*dict(offered.own), *(one.name for one in offered.fusions)}
    found = []
    for name, given in config["evaluators"].items():
        target: Any = build.find("evaluator", chosen_module(name, given))
        reads = redirected(f"config.evaluators.{name}.reads", target.reads, given.get("reads"))
        names = [reads[argument] for argument in reads if argument not in target.prompted]
        found += [str(offered.resolve(text)) for text in names if parse(text).tower in there]
    return sorted(set(found))


def averages(config: Mapping[str, Any]) -> bool:
    """Whether a run keeps the average of its parameters: for evaluation, or as a teacher."""
    if config["average"]["evaluate"] or wire(config)[0].averages:
        return True
    if any(parse(name).average for name in evaluated(config)):
        return True
    objectives = config["objectives"].items()
    targets: list[Any] = [
        build.find("objective", chosen_module(name, given)) for name, given in objectives
    ]
    return any(target.averages for target in targets)
