"""Devices to compile for: a TPU slice by name, which need not be present, or N CPU devices."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from mmrl import build, extras
from mmrl.devices import hardware
from mmrl.types import InputError

# Generation -> (number of axes of its torus, an example of a slice).
TPUS = {"v4": (3, "4x4x4"), "v5e": (2, "16x16"), "v5p": (3, "4x4x4"), "v6e": (2, "16x16")}

# libtpu reads these variables when it is loaded. They stop it from querying the metadata server of
# a TPU VM and from locking a TPU, and they silence its log.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as given, such as "v5e:16x16" or "cpu:8".
      devices: JAX devices.
      chip: data of one device; its share of a chip that has several devices. None for a CPU.
    """

    name: str
    devices: list[Any]
    chip: hardware.Chip | None


def find(name: str) -> Topology:
    """The devices of a topology, such as "v5e:16x16" or "cpu:8".

    Sets the platform of this process to CPU unless JAX has already started, because planning must
    not take an accelerator.

    Raises:
      InputError: unknown name, a slice that the TPU generation does not have, libtpu is not
        installed, or more CPU devices than this process can still create.
    """
    kind, _, size = name.partition(":")
    if kind != "cpu" and kind not in TPUS:
        raise InputError(build.unknown("topology in --topology", name, _choices()))
    jax.config.update("jax_platforms", "cpu")
    if kind == "cpu":
        return _cpu(name, size)
    if len(size.split("x")) != TPUS[kind][0] or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", size):
        raise InputError(
            f"--topology={name}; expected {kind}: and {TPUS[kind][0]} sizes, such as "
            f"{kind}:{TPUS[kind][1]}"
        )
    return _tpu(name, math.prod(int(part) for part in size.split("x")))


def _choices() -> list[str]:
    return [*(f"{kind}:{example}" for kind, (_, example) in TPUS.items()), "cpu:8"]


def _tpu(name: str, chips: int) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"--topology={name} needs libtpu, which is not installed: {extras.command('tpu')} "
            "(no TPU is needed)"
        )
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"--topology={name} is refused by libtpu: {error}") from None
    devices: list[Any] = list(described.devices)
    chip = hardware.find(devices[0].device_kind)
    if chip is None:
        raise InputError(f"--topology={name}: unknown chip {devices[0].device_kind!r}")
    cores = len(devices) // chips
    part = dataclasses.replace(
        chip,
        peak=chip.peak / cores,
        memory=chip.memory / cores,
        memory_bandwidth=chip.memory_bandwidth / cores,
        link_bandwidth=chip.link_bandwidth / cores,
    )
    return Topology(name, devices, part)


def _cpu(name: str, size: str) -> Topology:
    if not size.isdecimal() or int(size) < 1:
        raise InputError(
            f"--topology={name}; expected cpu:N with a number of devices, such as cpu:8"
        )
    count = int(size)
    try:
        jax.config.update("jax_num_cpu_devices", count)
        devices = jax.devices("cpu")
    except RuntimeError:  # JAX has already started, and its number of devices is fixed
        devices = jax.devices("cpu")
    if len(devices) < count:
        raise InputError(
            f"--topology={name}, but this process has started with {len(devices)} CPU devices"
        )
    return Topology(name, devices[:count], None)
