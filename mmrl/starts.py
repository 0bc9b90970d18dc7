"""What towers start from: the folder of an encoder, or a run, whose options a name stands for.

`config.towers.text.name = "weights/minilm"` means the text tower of that folder, see
`mmrl.presets`. A folder of an encoder states its towers in encoder.json (`mmrl.encoder_folder`), a
run directory in config.json.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmrl import build, encoder_folder, wiring
from mmrl.types import InputError

RUN = "config.json"


class Start(NamedTuple):
    """What a folder says about its encoder.

    Attributes:
      folder: as it was given.
      towers: name -> concrete options, as those of config.towers; `tokenizer` is a path.
      resize: how images were made square, see config.data.resize; "" where it is not stated.
      antialias: how positions of patches are interpolated, see `positions.resampling`.
      colour: what it saw of colour, see config.data.colour.
    """

    folder: str
    towers: dict[str, dict[str, Any]]
    resize: str
    antialias: bool = True
    colour: str = "as_stored"

    def tower(self, where: str, name: str, kind: str) -> tuple[str, dict[str, Any]]:
        """The tower of a kind, with its name: the only one, or else the one called `name`.

        Args:
          where: the config key, for the message.

        Raises:
          InputError: there is none, or several of other names; lists the towers of the folder.
        """
        kinds = self.kinds
        fitting = [one for one in kinds if kinds[one] == kind]
        if name in fitting:
            return name, self.towers[name]
        if len(fitting) == 1:
            return fitting[0], self.towers[fitting[0]]
        listed = ", ".join(f"{one} ({of})" for one, of in kinds.items())
        what = f"several {kind} towers, none of them called {name!r}" if fitting else ""
        what = what or f"no {kind} tower"
        raise InputError(f"{where}={self.folder}: the folder has {what}; it has: {listed}")

    @property
    def kinds(self) -> dict[str, str]:
        """Tower -> its kind."""
        return {name: wiring.kind_of(name, given) for name, given in self.towers.items()}


def is_folder(name: Any) -> bool:
    """Whether the name of an encoder means a folder: a path with a slash, or one that exists."""
    if not isinstance(name, str) or not name or name in build.choices("encoder"):
        return False
    return "/" in name or Path(name).is_dir()


def is_described(folder: str) -> bool:
    """Whether a folder says what its towers are."""
    path = Path(folder)
    return encoder_folder.is_encoder(path) or (path / RUN).is_file()


def check_is_no_address(where: str, folder: str) -> None:
    """Refuses an address of an object store.

    Raises:
      InputError: says how a run there becomes a folder.
    """
    if "://" in folder:
        raise InputError(
            f"{where}={folder} is an address; towers start from a folder on this machine: copy it "
            "first, as python -m mmrl.export --weights --workdir=ADDRESS --out=FOLDER does of a run"
        )


def read(where: str, folder: str) -> Start:
    """Reads what a folder says.

    Args:
      where: the config key or flag, for the messages.

    Raises:
      InputError: no such folder, one without a description, or a description that is not valid.
    """
    path, given = Path(folder), f"{where}={folder}"
    check_is_no_address(where, folder)
    if not path.is_dir():
        raise InputError(f"{given}: there is no such folder")
    if (path / RUN).is_file() and not encoder_folder.is_encoder(path):
        return _of_run(given, folder)
    try:
        found = encoder_folder.read(path)
    except InputError as error:
        raise InputError(f"{given}: {error}") from None
    towers = _options(given, found.towers)
    for name, options in towers.items():
        if wiring.kind_of(name, options) == "text" and not options.get("tokenizer"):
            raise InputError(f"{given}: tower {name!r} of the folder states no tokenizer")
    data = found.data
    return Start(
        folder,
        towers,
        str(data.get("resize", "")),
        bool(data.get("antialias", True)),
        encoder_folder.colour_of(data, towers),
    )


def remembering(run: Path) -> Callable[[str, str], Start]:
    """`read`, but a folder that is gone is what a run that started from it knows of it.

    So the same command continues a run whose folder was deleted.

    Args:
      run: its directory; it need not exist.
    """

    def read_or_recall(where: str, folder: str) -> Start:
        if not Path(folder).is_dir() and (run / RUN).is_file():
            content = _content(f"{where}={folder}", run)
            stated = content["towers"]
            started = {
                name: options
                for name, options in _options(f"{where}={folder}", stated).items()
                if stated[name].get("init") == folder
            }
            if started:
                return Start(folder, started, "")
        return read(where, folder)

    return read_or_recall


def _of_run(given: str, folder: str) -> Start:
    content = _content(given, Path(folder))
    data = content.get("data")
    towers = _options(given, content["towers"])
    for name, options in towers.items():
        if wiring.kind_of(name, options) != "text":
            continue
        # A run copies its tokenizer into its folder, whichever file its config names.
        files = (Path(folder).glob(f"{stem}.*") for stem in (f"tokenizer_{name}", "tokenizer"))
        file = next((path for paths in files for path in sorted(paths)), None)
        if file is None:
            raise InputError(f"{given}: the run has no tokenizer of tower {name!r} in its folder")
        kept = {key: one for key, one in options.items() if key != "tokenizer_model"}
        towers[name] = {**kept, "tokenizer": str(file)}
    return Start(folder, towers, data.get("resize", "") if isinstance(data, dict) else "")


def _content(given: str, run: Path) -> dict[str, Any]:
    """The config of a run, as far as its towers go."""
    file = run / RUN
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{given}: cannot read {file}: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("towers"), dict):
        raise InputError(f"{given}: {file} has no mapping `towers`")
    return content


def _options(given: str, towers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tower -> its options, see `options_of`, with the names of the encoders checked."""
    found = {}
    for name, options in towers.items():
        if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
            raise InputError(f"{given}: tower {name!r} of the folder has no name of an encoder")
        try:
            wiring.kind_of(name, options)
        except InputError as error:
            raise InputError(f"{given}: tower {name!r} of the folder: {error}") from None
        found[name] = options_of(_tuples(options))
    return found


def options_of(tower: Mapping[str, Any]) -> dict[str, Any]:
    """What is given for a tower, without the keys that say how a run uses it."""
    dropped = set(wiring.TOWER_KEYS) - {"name", "kind"}
    return {key: one for key, one in tower.items() if key not in dropped}


def _tuples(value: Any) -> Any:
    """JSON as values of a config: lists become tuples."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def head_specs(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Head -> its options in full form, with the kind that it has where it states none.

    Args:
      options: of a tower.
    """
    found = {}
    for name, given in (options.get("heads") or {}).items():
        spec = dict(given) if hasattr(given, "items") else {"width": given}
        local = name in ("embedding", "regions", "words")
        default = options.get("head", "linear") if local else "affine"
        found[name] = {"kind": default, **spec}
    return found
