"""Devices by name: "cpu", "gpu:0"."""

import contextlib

import jax

from mmrl.types import InputError


def find(given: str | jax.Device) -> jax.Device:
    """A device; "cpu" and "gpu" name the first one of their kind, "gpu:1" the one of number 1.

    Raises:
      InputError: there is no such device; names those that there are.
    """
    if isinstance(given, jax.Device):
        return given
    names = {f"{device.platform}:{device.id}": device for device in _all()}
    kinds = {device.platform: device for device in reversed(names.values())}
    found = {**kinds, **names}.get(given)
    if found is None:
        raise InputError(f"device={given!r}; there are {', '.join(names)}")
    return found


def _all() -> list[jax.Device]:
    """The devices of this process, and its CPU, which may be beside them."""
    with contextlib.suppress(RuntimeError):  # JAX was told to use another platform alone
        return [*jax.local_devices(), *jax.local_devices(backend="cpu")]
    return jax.local_devices()
