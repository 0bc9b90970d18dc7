"""One persistent cache of compiled programs for all runs of a user."""

from pathlib import Path

import jax


def use(folder: str) -> str:
    """Makes JAX keep every compiled program in `folder`, and look for it there first.

    The same preset then compiles nothing the second time, whatever its run directory.

    Args:
      folder: created if absent; "~" is the home directory. "": no cache.

    Returns:
      Why the cache is off although `folder` was given; "" if it is on.
    """
    if not folder:
        return ""
    if turn_off_if_unsafe():
        return "compiled programs are not kept, because those of several CPU devices may hang"
    path = Path(folder).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"compiled programs are not kept: {path}: {error.strerror}"
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default only programs that take a second to compile are kept: the encoders' would not be.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # These caches of XLA's own are named by path in the compile options, and so in the key of every
    # program: a cache that was moved or copied would never be hit.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    return ""


def turn_off_if_unsafe() -> bool:
    """Turns every persistent cache off if there are several CPU devices; returns whether it did.

    CPU programs that are read back do not keep the order of their collectives. Those of concurrent
    ones are mixed up between devices and processes, which then wait for each other forever. Seen
    with jax 0.10.2: 1 of 6 runs with eight fake devices hung, and none of 6 without the cache.
    """
    unsafe = jax.default_backend() == "cpu" and jax.device_count() > 1
    if unsafe:
        jax.config.update("jax_enable_compilation_cache", False)
    return unsafe
