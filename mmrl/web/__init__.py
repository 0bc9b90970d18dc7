"""What the commands that listen on a network share: tokens, limits, batches, the server."""

import importlib.util

from mmrl import extras
from mmrl.types import InputError


def check_installed() -> None:
    """Refuses to start where a package is missing that only these commands need.

    Raises:
      InputError: names the packages, and how to install them.
    """
    missing = [name for name in extras.PACKAGES["serve"] if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"this command needs {', '.join(missing)}: {extras.command('serve')}")
