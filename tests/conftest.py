"""Settings of all tests: exact float32 products, strict dtype promotion, parsed flags."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from absl import flags

# A thread for every device that waits in a collective, see mmrl.cli.
os.environ.setdefault("NPROC", "256")
# Eight fake devices in this process; commands that tests start have one, unless told otherwise.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
flags.FLAGS.mark_as_parsed()  # grain reads flags when it starts worker processes

# Tests run small arrays once: compiling costs more than computing. XLA's older emitters compile
# in a third of the time, and so does one piece of code where there are few cores. Commands that
# tests start inherit both. XLA reads the variable when the first backend starts.
QUICK_XLA_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{QUICK_XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
jax.config.update("jax_disable_most_optimizations", True)
# Many tests compile the same small step; the second time it comes from this session's cache.
_CACHE = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves all but a few cases of a test marked with `default_cases` to `make test-all`."""
    cases: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker("default_cases")
        if mark is None or item.get_closest_marker("exhaustive"):
            continue
        test, bracket, _ = item.nodeid.partition("[")
        if not bracket:
            raise pytest.UsageError(f"{test}: default_cases{mark.args} of a test without cases")
        cases.setdefault((test, mark.args[0]), []).append(item)
    for (_, kept), found in cases.items():
        for i, item in enumerate(found):
            # Spread evenly: a case is kept where the count of kept ones grows.
            if i * kept // len(found) == (i - 1) * kept // len(found):
                item.add_marker(pytest.mark.exhaustive)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real files; skips the test if there is none."""
    folder = Path(os.environ.get("MMRL_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MMRL_REAL_DATA")
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for `tests.browser.opened`; skips the test if none is installed.

    While it runs, `asyncio.run` fails here, and with it reading and writing of checkpoints. Runs
    that a file needs are therefore made before, or in another process.
    """
    from benchmarks import browser

    if reason := browser.missing():
        pytest.skip(reason)
    with browser.started() as started:
        yield started


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Refuses implicit dtype promotion, except in tests of optax, whose Adam relies on it."""
    standard = request.node.get_closest_marker("optax") is not None
    with jax.numpy_dtype_promotion("standard" if standard else "strict"):
        yield
    # A test that changed this would slow down all that follow in its process.
    assert jax.config.read("jax_disable_most_optimizations")
