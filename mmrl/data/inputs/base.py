"""What an input is: some arrays of every batch, made from the records of a corpus."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mmrl import build, streams, wiring
from mmrl.data import counter, stall
from mmrl.data.corpus import Corpus
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.types import InputError, Source
from mmrl.wiring import Wiring

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]
"""Array name -> (shape without the batch axis, dtype)."""

# The streams of an example that batches of earlier versions drew from; all others are numbered by
# the hash of their name, so that a further input changes no draw of another one.
_NUMBERED = {"image/jitter": 0, "perturbed/copies": 1, "image/view": 2}


class Rows(NamedTuple):
    """n rows of a training batch, or n examples of an evaluation.

    Attributes:
      indices: of the examples in the corpus.
      step: updates done before, which curricula depend on; 0 in evaluation.
      seeds: u64[n], of a random stream for each row.
    """

    indices: Sequence[int]
    step: int
    seeds: np.ndarray

    def stream(self, name: str) -> np.ndarray:
        """u64[n]: seeds of the stream of a name, such as "image/jitter"."""
        return counter.bits(self.seeds, _NUMBERED.get(name, streams.number(name)))


class Place(NamedTuple):
    """Where an input is read.

    Attributes:
      corpus: the records.
      tokenizer: of the tower that reads the input; None for inputs without text.
      train: whether augmentation, excerpts and other random choices are on.
      seed: of choices that depend on more than the row, see `Excerpts`.
      mark: called with each stage before it begins, see `stall.Board.mark`.
    """

    corpus: Corpus
    tokenizer: Tokenizer | None = None
    train: bool = False
    seed: int = 0
    mark: Callable[[int, int], None] = stall.ignore


Reader = Callable[[Rows, Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""(rows, arrays "<input>.<array>" of the inputs made before) -> the input's arrays, [n, ...].

It pickles, because worker processes read too, and several threads may call it at once.
"""


class Input:
    """The arrays of one input; subclasses are the files of this folder.

    Args:
      name: of the input in the batch.
      tower: options of the tower that encodes it; empty if no tower does.
      data: options of config.data, with those of config.inputs.NAME on top.

    Attributes:
      kind: kind of the towers that may encode it; "" for arrays that no tower encodes.
      options: keys of `data` that config.inputs.NAME may set for this input alone.
      tower_options: options of the tower that the arrays depend on beyond their shapes.
      required: whether a record without this input is rejected. The arrays of an input that is
        not required have `present` bool[n]; the rows in which it is False hold no data.
      after: inputs that must be made before this one, if they are read at all.
      tower_name: of the tower; "" if no tower encodes it.
    """

    kind: ClassVar[str] = ""
    options: ClassVar[tuple[str, ...]] = ()
    tower_options: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[bool] = False

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        self.name, self.tower, self.data = name, tower, data
        self.tower_name = ""
        self.after: tuple[str, ...] = ()

    def shapes(self) -> Shapes:
        """Shapes and dtypes of all arrays, which training, planner and tests rely on."""
        raise NotImplementedError

    def link(self, inputs: Mapping[str, "Input"]) -> None:
        """Told of all inputs, by name, before any of them is opened."""

    def check(self, name: str, source: Source) -> None:
        """Refuses a source that this input cannot read, before its records are read.

        Args:
          name: of the corpus, for messages.

        Raises:
          InputError: it cannot.
        """

    def names(self) -> Mapping[str, Mapping[str, int]]:
        """Array -> what its numbers stand for (name -> number), for arrays of categories."""
        return {}

    def vocabulary(self, corpus: Corpus) -> tuple[str, ...]:
        """The texts on which the tokenizer of a tower is trained whose own input this is."""
        return tuple(corpus.texts_of(tuple(self.data["sections"]))[0])

    def open(self, place: Place) -> Reader:
        """What makes the arrays from the records of a corpus."""
        raise NotImplementedError


def make(config: Mapping[str, Any], wired: Wiring) -> dict[str, Input]:
    """The inputs that a wiring reads, each after those that it needs.

    Args:
      config: a whole config.

    Raises:
      InputError: an unknown input, an option out of range, a tower of another kind than the input,
        or towers that need different arrays of one input.
    """
    readers = wired.readers()
    made = {name: make_one(config, name, tower) for name, tower in readers.items()}
    for tower, read in wired.recorded().items():
        for name in read:
            _check_shared(config, made[name], readers[name], tower)
    for one in made.values():
        one.link(made)
    order = sorted(made, key=lambda name: bool(made[name].after))
    return {name: made[name] for name in order}


def make_one(config: Mapping[str, Any], name: str, tower: str | None) -> Input:
    """One input as a tower reads it; None: no tower does.

    Raises:
      InputError: as `make`.
    """
    given = dict(config["inputs"].get(name, {}))
    target: Any = build.find("input", given.pop("name", None) or name)
    for option in given:
        if option not in target.options:
            where = f"option in config.inputs.{name}"
            raise InputError(build.unknown(where, option, target.options))
    options = dict(config["towers"][tower]) if tower is not None else {}
    if target.kind:
        if tower is None:
            raise InputError(f"the arrays of input {name!r} are read, but no tower encodes it")
        kind = wiring.kind_of(tower, options)
        if kind.rpartition(".")[2] != target.kind:
            raise InputError(
                f"tower {tower!r} is of kind {kind} and cannot read input {name!r}, which is of "
                f"kind {target.kind}"
            )
    elif tower is not None:
        raise InputError(f"tower {tower!r} cannot read input {name!r}, which no tower encodes")
    made = target(name, options, {**config["data"], **given})
    made.tower_name = tower or ""
    return made


class Needs(NamedTuple):
    """What inputs read of the records.

    Attributes:
      images, texts: whether records without an image, or without any of `sections`, are rejected.
      sections: of the main text. more: further texts, each by its sections and whether records
        without it are rejected.
    """

    images: bool
    texts: bool
    sections: tuple[str, ...]
    more: tuple[tuple[tuple[str, ...], bool], ...] = ()


def needs(inputs: Mapping[str, Input], sections: Sequence[str]) -> Needs:
    """What inputs read of the records; `sections` are those of config.data."""
    main, images, texts = tuple(sections), False, False
    more: dict[tuple[str, ...], bool] = {}
    for one in inputs.values():
        required = one.required and one.data.get("required", True)
        if one.kind == "image":
            images |= required
        elif one.kind == "text" and tuple(one.data["sections"]) == main:
            texts |= required
        elif one.kind == "text":
            other = tuple(one.data["sections"])
            more[other] = more.get(other, False) or required
    return Needs(images, texts, main, tuple(more.items()))


def _check_shared(config: Mapping[str, Any], made: Input, first: str | None, tower: str) -> None:
    """Refuses a tower that needs other arrays of an input than the tower before it."""
    if tower == first:
        return
    other = make_one(config, made.name, tower)
    same = other.shapes() == made.shapes() and all(
        other.tower.get(key) == made.tower.get(key) for key in made.tower_options
    )
    if not same:
        raise InputError(
            f"towers {first!r} and {tower!r} read input {made.name!r} with other sizes or "
            f"tokenizers; give one of them an input of its own: config.towers.{tower}.input="
            f"{made.name}_2 and config.inputs.{made.name}_2.name={made.name}"
        )
