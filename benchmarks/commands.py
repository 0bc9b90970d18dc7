"""What the commands of this folder share: lists of numbers, fake devices, figures as JSON."""

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

import jax


def numbers(text: str) -> tuple[int, ...]:
    """The value of an option such as --devices=1,8."""
    return tuple(int(part) for part in text.split(","))


def at_least_devices(count: int) -> None:
    """Lets a CPU stand for so many devices; call it before the first of them is asked for."""
    if getattr(jax.config, "jax_num_cpu_devices") < count:  # noqa: B009
        # Both are read when the backend starts; fake devices need threads to wait in.
        jax.config.update("jax_num_cpu_devices", count)
        os.environ.setdefault("NPROC", str(8 * count))


def write(given: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """The figures and the settings they were measured with, where --json says."""
    if not given.json:
        return
    settings = {name: value for name, value in vars(given).items() if name != "json"}
    result = {"jax": jax.__version__, "settings": settings, **figures}
    given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
