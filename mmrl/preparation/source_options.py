"""Options of a source as texts: what `--option=KEY=VALUE` means."""

from collections.abc import Sequence
from typing import Any

from mmrl import build, values
from mmrl.types import InputError
from mmrl.values import Option


def options(name: str) -> dict[str, Option]:
    """The options of source `name` that can be given; the split is not one of them.

    Raises:
      InputError: no such source.
    """
    found = build.options(build.find("source", name))
    return {key: option for key, option in found.items() if key != "split"}


def parse(name: str, given: Sequence[str]) -> dict[str, Any]:
    """Options of source `name`, each of the type that it takes; see `values.parse`.

    Raises:
      InputError: no such option, given twice, or a value of another type.
    """
    allowed = options(name)
    parsed: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option={text}; expected --option=KEY=VALUE")
        if key not in allowed:
            raise InputError(build.unknown(f"option of source {name}", key, sorted(allowed)))
        if key in parsed:
            raise InputError(f"--option={key}=... is given twice")
        parsed[key] = values.parse(f"--option={text}", value, allowed[key].accepts)
    return parsed
