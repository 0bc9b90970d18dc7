"""Makes the folder of an encoder from the files of another library."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl import config, encoder_folder, files
from mmrl.data.text import tokenizer_files
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.models import fit
from mmrl.models.convert import base
from mmrl.models.convert.source import Source
from mmrl.training import initial, learner
from mmrl.types import InputError

REPORT = "conversion.json"
_FLOAT32 = {"dtype": jnp.float32, "param_dtype": jnp.float32}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a conversion changes; None: as the source has it.

    Attributes:
      size, patch_size: of images. length: most tokens of a text.
      fold: how three channels become one, "sum" or "mean".
    """

    size: int | None = None
    patch_size: int | None = None
    length: int | None = None
    fold: str | None = None

    def check(self, towers: Sequence[str]) -> None:
        """Refuses changes of a tower that the source does not have."""
        given = {"image": (self.size, self.patch_size, self.fold), "text": (self.length,)}
        for kind, values in given.items():
            if kind not in towers and any(value is not None for value in values):
                raise InputError(f"options of {kind}s given, but the source has no {kind} tower")

    def of_tower(self, kind: str) -> dict[str, Any]:
        """The options of config.towers.NAME that change."""
        if kind == "text":
            found: dict[str, Any] = {"length": self.length}
        else:
            channels = None if self.fold is None else 1
            found = {"size": self.size, "patch_size": self.patch_size, "channels": channels}
        return {name: value for name, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Converted:
    """An encoder in our names.

    Attributes:
      towers: as in config.towers. arrays: path -> f32 array.
      tokenizer: name and content of its file; None without a text tower.
      family: of the source. source: where it is from. conversion, report: see `base`.
      notes: sentences about what differs from the source.
    """

    towers: Mapping[str, Mapping[str, Any]]
    arrays: Mapping[str, np.ndarray]
    tokenizer: tuple[str, bytes] | None
    family: str
    source: Source
    conversion: base.Conversion
    report: base.Report
    notes: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Writes the folder of the encoder, which appears whole or not at all.

        Raises:
          InputError: it is there and not empty, or cannot be written.
        """
        try:
            with files.whole_folder(folder) as fresh:
                self._write(fresh)
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror or error}") from error

    def _write(self, folder: Path) -> None:
        if self.tokenizer is not None:
            files.write(folder / self.tokenizer[0], self.tokenizer[1])
        with files.whole(folder / encoder_folder.WEIGHTS) as fresh, fresh.open("wb") as file:
            np.savez(file, **self.arrays)  # type: ignore[arg-type]
        report = {
            "used": {name: list(paths) for name, paths in self.report.used.items()},
            "ignored": dict(self.report.ignored),
            "notes": list(self.notes),
        }
        files.write_json(folder / REPORT, report)
        colour = encoder_folder.colour_of({}, self.towers)
        encoder_folder.write(
            folder,
            towers=config.plain(dict(self.towers)),
            data={
                "resize": self.conversion.resize,
                **({} if self.conversion.antialias else {"antialias": False}),
                **({"colour": colour} if colour != "as_stored" else {}),
            },
            source={
                "family": self.family,
                "files": self.source.sha256(),
                "license": self.source.license,
            },
        )

    def lines(self) -> Iterator[str]:
        """What was converted, line by line."""
        for name, options in self.towers.items():
            own = [a.size for path, a in self.arrays.items() if _of(name, path)]
            sizes = ("width", "depth", "num_heads", "size", "patch_size", "length", "vocab_size")
            shown = ", ".join(f"{key} {options[key]}" for key in sizes if key in options)
            yield f"{name}: {options['name']}, {shown}; {sum(own):,} parameters"
        yield (
            f"{len(self.report.used)} tensors of {self.family} used, "
            f"{len(self.report.ignored)} ignored"
        )
        reasons: dict[str, list[str]] = {}
        for name, reason in self.report.ignored.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"ignored: {', '.join(names[:3])}{more}: {reason}"
        yield from (f"note: {note}" for note in self.notes)


def convert(
    source: Source, family: str = "", tokenizer: Path | None = None, options: Options | None = None
) -> Converted:
    """The towers of a source, with every tensor accounted for.

    Args:
      family: name of its family; "": the one that recognises it.
      tokenizer: folder or file; None: beside the weights.

    Raises:
      InputError: an unknown source, tensors or a config without a counterpart here, or options that
        it does not support.
    """
    options = options or Options()
    name, found = base.find(source, family)
    with base.fitting(source, name):
        conversion = found.convert(source)
    towers = {tower: dict(given) for tower, given in conversion.towers.items()}
    made = None
    if "text" in towers:
        made = tokenizer_files.read(tokenizer or source.folder)
        _check_vocabulary(made, towers["text"], source)
        towers["text"] |= {"tokenizer": made.name, **_marks(made.tokenizer)}
    with base.fitting(source, name):
        target = expected(towers)
    arrays, report = base.build(source, conversion, target)
    notes = list(conversion.notes)
    options.check(tuple(towers))
    for tower, given in towers.items():
        own = {path: array for path, array in arrays.items() if _of(tower, path)}
        fold = options.fold if tower == "image" else None
        towers[tower], fitted, more = fit.changed(
            given, own, options.of_tower(tower), fold=fold, antialias=conversion.antialias
        )
        arrays |= fitted
        notes += [f"{tower}: {note}" for note in more]
    wrong = [
        f"{path} is {list(arrays[path].shape)}; expected {list(shape)}"
        for path, shape in expected(towers).items()
        if arrays[path].shape != shape
    ]
    if wrong:
        raise InputError(f"{source.path} cannot be changed so: {'; '.join(wrong)}")
    content = None if made is None else (made.name, made.content)
    return Converted(towers, arrays, content, name, source, conversion, report, tuple(notes))


def _of(tower: str, path: str) -> bool:
    return path.startswith(f"towers/{tower}/")


def _marks(tokenizer: Tokenizer) -> dict[str, bool]:
    """The options of a text tower that say which marks its texts lack."""
    marks = {"begin_mark": tokenizer.begin, "end_mark": tokenizer.end}
    return {option: False for option, mark in marks.items() if mark is None}


def _check_vocabulary(
    tokenizer: tokenizer_files.TokenizerFile, text: Mapping[str, Any], source: Source
) -> None:
    if tokenizer.vocab_size > text["vocab_size"]:
        raise InputError(
            f"{source.path}: the tokenizer has {tokenizer.vocab_size:,} ids, the table of tokens "
            f"{text['vocab_size']:,} rows; they do not belong together"
        )


def expected(towers: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter and statistic of towers.

    Raises:
      InputError: options that no tower accepts.
    """

    def build() -> nnx.Dict[Any]:
        made = {
            name: learner.make_tower(name, given, lambda _: nnx.Rngs(0), _FLOAT32)
            for name, given in towers.items()
        }
        return nnx.Dict({"towers": nnx.Dict(made)})

    state = nnx.state(nnx.eval_shape(build))
    leaves = initial.by_path(nnx.to_pure_dict(state))
    return {
        path: tuple(leaf.shape)
        for path, leaf in leaves.items()
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) and "/rngs/" not in path
    }
