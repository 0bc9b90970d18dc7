"""Prints every key of the config with its default, what it accepts, and what it does.

With --config, the keys and the modules of that preset are printed with its values; without, all
keys and the options of all modules. docs/configuration.md is the output of --markdown.

    python -m mmrl.options
    python -m mmrl.options --config=configs/pretrain.py:smoke --config.towers.image.name=resnet
    python -m mmrl.options --markdown > docs/configuration.md
"""

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from absl import flags

from mmrl import build, cli, presets, values
from mmrl import config as configs
from mmrl.models.layers import BlockOptions
from mmrl.values import REQUIRED, Option

_FLAGS = cli.new_flags()
_CONFIG = cli.define_config(
    _FLAGS, "FILE[:VARIANT,...]: A preset whose keys, modules and values to print."
)
_MARKDOWN = flags.DEFINE_bool("markdown", False, "Prints Markdown.", flag_values=_FLAGS)

_WIDTH = 100


class Row(NamedTuple):
    """One key: its dotted name, its default or its value in a preset, and what is known of it."""

    key: str
    value: Any
    option: Option


class Section(NamedTuple):
    """A group of keys; the level is that of its heading, 2 or 3."""

    level: int
    title: str
    text: str
    rows: list[Row]


def every() -> Iterator[Section]:
    """All keys with their defaults, and the options of all modules."""
    yield from _keys(configs.KEYS, None)
    for path, place in configs.MODULES.items():
        title = path.capitalize() if place.many else f"{place.kind.capitalize()}s"
        yield Section(2, title, _how(path, place), [])
        found = {name: place.options(name) for name in build.choices(place.kind)}
        classes = {name: build.find(place.kind, name) for name in found}
        owners = dict.fromkeys(one.owner for options in found.values() for one in options.values())
        bases = [owner for owner in owners if owner and owner not in classes.values()]
        for base in bases:
            rows = [Row(n, o.default, o) for n, o in _of(found, base)]
            shared = f"Options that several {place.kind}s take from `{base.__name__}`."
            yield Section(3, f"`{base.__name__}`", shared, rows)
        for name, options in found.items():
            own = [Row(n, o.default, o) for n, o in options.items() if o.owner not in bases]
            text = _summary(classes[name])
            inherited = sorted({o.owner.__name__ for o in options.values() if o.owner in bases})
            listed = " and ".join(f"`{base}`" for base in inherited)
            text += f" It also takes the options of {listed}." if inherited else ""
            text += _reads(classes[name])
            yield Section(3, f"`{name}`", text, own)
        if place.kind == "encoder":
            inner = build.options(BlockOptions)
            rows = [Row(f"block.{n}", o.default, o) for n, o in inner.items()]
            yield Section(3, "`BlockOptions`", _summary(BlockOptions), rows)


def of(config: Mapping[str, Any]) -> Iterator[Section]:
    """The keys of a config and the options of the modules that it chooses, with their values."""
    yield from _keys(configs.KEYS, config)
    for path, place, name, given in configs.modules(config):
        if name is None:
            continue
        options = {**place.options(name, given), **(place.beside if place.many else {})}
        rows = [Row(f"{path}.{n}", given.get(n, o.default), o) for n, o in options.items()]
        title = path if path.endswith(f".{name}") else f"{path}: {name}"
        yield Section(2, title, _summary(build.find(place.kind, name)), rows)


def text(sections: Iterator[Section]) -> str:
    """Sections for a terminal."""
    lines = []
    for section in sections:
        title = section.title.replace("`", "")
        lines += ["", title, ("=" if section.level == 2 else "-") * len(title)]
        lines += textwrap.wrap(section.text, _WIDTH)
        for row in section.rows:
            value = "is required" if row.value is REQUIRED else f"= {_shown(row.value)}"
            lines.append(f"  {row.key} {value}  ({values.name(row.option.accepts)})")
            indent = " " * 6
            lines += textwrap.wrap(
                row.option.text, _WIDTH, initial_indent=indent, subsequent_indent=indent
            )
    return "\n".join(lines).lstrip("\n")


def markdown(sections: Iterator[Section]) -> str:
    """Sections as a Markdown page."""
    rules = inspect.cleandoc(presets.__doc__ or "").partition("\n\n")[2]
    lines = [
        "# Configuration",
        "",
        "This page is the output of `python -m mmrl.options --markdown`.",
        "",
        "A preset is a Python file whose `get_config` returns the config: it starts from "
        "`mmrl.config.base()` and assigns. `--config=FILE:VARIANT` chooses a preset, and "
        "`--config.KEY=VALUE` changes a key. Numbers, tuples and mappings are written as in "
        "Python, texts without quotes, a list of texts also as `a,b,c`. Quote for the shell what "
        "contains spaces, brackets, braces or quotes.",
        "",
        *rules.splitlines(),
    ]
    for section in sections:
        lines += ["", f"{'#' * section.level} {section.title}", ""]
        lines += [section.text, ""] if section.text else []
        if section.rows:
            lines += ["| key | default | accepts | meaning |", "|---|---|---|---|"]
        for row in section.rows:
            value = "required" if row.value is REQUIRED else f"`{_shown(row.value)}`"
            cells = (f"`{row.key}`", value, values.name(row.option.accepts), row.option.text)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        if not section.rows and lines[-1] == "":
            lines.pop()
    return "\n".join(lines)


def _keys(keys: Mapping[str, Any], config: Mapping[str, Any] | None) -> Iterator[Section]:
    """The keys of the config itself: those without a dot, then each group."""
    plain = {name: one for name, one in keys.items() if isinstance(one, Option)}
    plain = {name: one for name, one in plain.items() if name not in configs.MODULES}
    yield Section(2, "General", "", list(_rows(plain, "", config)))
    for name, one in keys.items():
        if name in plain:
            continue
        if isinstance(one, Option):
            rows = [] if config is not None else [Row(name, one.default, one)]
        else:
            inner = config[name] if config is not None else None
            rows = list(_rows(one, f"{name}.", inner))
        if rows:
            yield Section(2, f"`{name}`", "", rows)


def _rows(keys: Mapping[str, Any], prefix: str, config: Mapping[str, Any] | None) -> Iterator[Row]:
    for name, one in keys.items():
        if not isinstance(one, Option):
            yield from _rows(one, f"{prefix}{name}.", config[name] if config is not None else None)
        elif config is None:
            yield Row(f"{prefix}{name}", one.default, one)
        elif f"{prefix}{name}" not in configs.MODULES:
            yield Row(f"{prefix}{name}", config[name], one)


def _how(path: str, place: configs.Place) -> str:
    """How a module of a kind is chosen."""
    if place.many:
        extra = "".join(
            f" Each also has `{name}`, by default `{_shown(one.default)}`: {one.text}"
            for name, one in place.beside.items()
        )
        default = " It may be left out where NAME is the name of the module." if place.named else ""
        return (
            f"{configs.KEYS[path].text} "
            f"`config.{path}.NAME` holds the options of one {place.kind}; NAME is free. "
            f"`config.{path}.NAME.{place.chooser}` chooses the {place.kind}.{default}{extra}"
        )
    return (
        f"`config.{path}.{place.chooser}` chooses one; its options stand beside it, in "
        f"`config.{path}`."
    )


def _of(found: Mapping[str, Mapping[str, Option]], owner: type) -> Iterator[tuple[str, Option]]:
    """The options that a base class takes, as it states them."""
    seen = set()
    for options in found.values():
        for name, option in options.items():
            if option.owner is owner and name not in seen:
                seen.add(name)
                yield name, option


def _summary(target: type) -> str:
    """The first paragraph of a class's docstring in one line."""
    return " ".join((inspect.getdoc(target) or "").partition("\n\n")[0].split())


def _reads(target: Any) -> str:
    """A sentence about what an objective or evaluator reads by default; "" for other modules."""
    read = {**getattr(target, "reads", {}), **getattr(target, "batch", {})}
    listed = ", ".join(f"`{argument}`: `{name}`" for argument, name in read.items())
    return f" Reads by default {listed}." if listed else ""


def _shown(value: Any) -> str:
    """A value for reading; an empty text is visible."""
    return values.show(value) if value != "" else '""'


def main() -> None:
    """Prints the keys."""
    config = _CONFIG.make()
    if config is None and _CONFIG.changes:
        cli.required_config(_CONFIG)
    sections = every() if config is None else of(config)
    print(markdown(sections) if _MARKDOWN.value else text(sections))


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__)
