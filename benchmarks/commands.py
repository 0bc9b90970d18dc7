"""Helpers shared by the benchmarks: options, devices, timing and JSON output."""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


def numbers(text: str) -> tuple[int, ...]:
    """Parses an option such as --devices=1,8."""
    return tuple(int(part) for part in text.split(","))


def at_least_devices(count: int) -> None:
    """Creates at least `count` devices if JAX runs on CPU. Call it before JAX uses any device."""
    if getattr(jax.config, "jax_num_cpu_devices") < count:  # noqa: B009
        # XLA reads both when it starts. Each device needs threads, in which collectives wait.
        jax.config.update("jax_num_cpu_devices", count)
        os.environ.setdefault("NPROC", str(8 * count))


def median_seconds(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Median wall time of each call.

    All calls run once untimed, then in turn for `rounds` rounds, so that a change in the load of
    the machine affects all of them.
    """
    for call in calls:
        jax.block_until_ready(call())
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, seconds, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in seconds]


def write(args: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Writes figures and options to the file of --json, if given."""
    if not args.json:
        return
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    result = {"jax": jax.__version__, "settings": settings, **figures}
    args.json.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
