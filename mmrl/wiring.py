"""Names of encodings, and what a config reads by them: which towers encode which inputs.

    <tower>[@<input>].<feature>        image.embedding, text@perturbed.embedding

A name without an input means the tower's own: "image.embedding" is "image@image.embedding" where
the tower `image` reads the input `image`. Arrays of a batch are named <input>.<array>, such as
"perturbed.valid".
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mmrl import build
from mmrl.types import InputError

_PATTERN = re.compile(r"(?P<tower>[a-z0-9_]+)(@(?P<input>[a-z0-9_]+))?\.(?P<feature>[a-z0-9_]+)")

TOWER_KEYS = ("name", "kind", "input", "frozen", "init", "lora")
"""Keys of config.towers.NAME that are options neither of the tower nor of its encoder."""

# Options that the learner gives to towers and encoders.
GIVEN_TO_TOWERS = ("encoder", "make_rngs", "dtype", "param_dtype")
GIVEN_TO_ENCODERS = ("rngs", "dtype", "param_dtype")

# Arrays of a batch that belong to no input.
COMMON = ("group", "index")


class Name(NamedTuple):
    """A parsed name of an encoding; `input` is "" for the tower's own."""

    tower: str
    input: str
    feature: str

    def __str__(self) -> str:
        return f"{self.tower}{'@' + self.input if self.input else ''}.{self.feature}"


def parse(text: str) -> Name:
    """Parses "<tower>[@<input>].<feature>".

    Raises:
      InputError: another form.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise InputError(
            f"{text!r} is no name of an encoding; expected <tower>[@<input>].<feature>"
        )
    return Name(match["tower"], match["input"] or "", match["feature"])


@dataclasses.dataclass(frozen=True)
class Wiring:
    """What is encoded and read; a tuple of tuples, so that an NNX module may hold it.

    Attributes:
      own: (tower, the input it reads unless a name says otherwise) pairs.
      encodings: the full names of all encodings that are read, sorted.
      arrays: the arrays of the batch that are read as they are, sorted.
    """

    own: tuple[tuple[str, str], ...]
    encodings: tuple[Name, ...]
    arrays: tuple[str, ...]

    @classmethod
    def of(
        cls, own: Mapping[str, str], encodings: Iterable[str], arrays: Iterable[str] = ()
    ) -> "Wiring":
        """Resolves names.

        Args:
          own: tower -> the input it reads unless a name says otherwise.

        Raises:
          InputError: a name of another form, or of a tower that does not exist.
        """
        full = {resolve(text, own) for text in encodings}
        return cls(tuple(own.items()), tuple(sorted(full)), tuple(sorted(set(arrays))))

    def wanted(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """tower -> input -> features, towers in their order, a tower's own input first."""
        result: dict[str, dict[str, tuple[str, ...]]] = {}
        for tower, own in self.own:
            names = [name for name in self.encodings if name.tower == tower]
            inputs = sorted({name.input for name in names}, key=lambda one: (one != own, one))
            if inputs:
                result[tower] = {
                    one: tuple(name.feature for name in names if name.input == one)
                    for one in inputs
                }
        return result

    def readers(self) -> dict[str, str | None]:
        """input -> the first tower that encodes it; None for inputs whose arrays alone are read."""
        found: dict[str, str | None] = {}
        for tower, inputs in self.wanted().items():
            for one in inputs:
                found.setdefault(one, tower)
        for array in self.arrays:
            if array not in COMMON:
                found.setdefault(array.partition(".")[0], None)
        return found


def resolve(text: str, own: Mapping[str, str]) -> Name:
    """A parsed name with its input filled in.

    Raises:
      InputError: another form, or a tower that does not exist.
    """
    name = parse(text)
    if name.tower not in own:
        raise InputError(build.unknown(f"tower in {text!r}", name.tower, sorted(own)))
    return name._replace(input=name.input or own[name.tower])


def redirected(
    where: str, defaults: Mapping[str, str], given: Mapping[str, Any] | None
) -> dict[str, str]:
    """The defaults with what a config redirects.

    Args:
      where: the config key to name in the message.
      defaults: argument -> name.
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
    return {**defaults, **(given or {})}


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


def wire(
    config: Mapping[str, Any],
) -> tuple[Wiring, dict[str, dict[str, Name]], dict[str, dict[str, str]]]:
    """What the objectives of a config read; without objectives, one feature of every tower.

    Returns:
      The wiring; objective -> argument -> encoding; objective -> argument -> array of the batch.

    Raises:
      InputError: an argument or a tower that does not exist.
    """
    own = own_inputs(config["towers"])
    encodings: dict[str, dict[str, Name]] = {}
    arrays: dict[str, dict[str, str]] = {}
    for name, given in config["objectives"].items():
        target: Any = build.find("objective", chosen_module(name, given))
        where = f"config.objectives.{name}.reads"
        chosen = redirected(where, {**target.reads, **target.batch}, given.get("reads"))
        encodings[name] = {key: resolve(chosen[key], own) for key in target.reads}
        arrays[name] = {key: chosen[key] for key in target.batch}
    names = {str(name) for reads in encodings.values() for name in reads.values()}
    if not encodings:  # encoders that are not trained here
        names = {f"{tower}.pooled" for tower in own}
    taken = {name for reads in arrays.values() for name in reads.values()}
    return Wiring.of(own, names, taken), encodings, arrays


def evaluated(config: Mapping[str, Any]) -> list[str]:
    """The encodings of held-out records that the evaluators of a config read, by full name.

    Encodings of towers that do not exist are left out: an evaluator may accept their absence.

    Raises:
      InputError: an unknown evaluator or argument.
    """
    own = own_inputs(config["towers"])
    found = []
    for name, given in config["evaluators"].items():
        target: Any = build.find("evaluator", chosen_module(name, given))
        reads = redirected(f"config.evaluators.{name}.reads", target.reads, given.get("reads"))
        names = [reads[argument] for argument in reads if argument not in target.prompted]
        found += [str(resolve(text, own)) for text in names if parse(text).tower in own]
    return sorted(set(found))
