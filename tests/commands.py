"""Helpers for tests of commands: arguments, and runs in the process of the test."""

import runpy
import sys
import tempfile

import jax
import pytest

from tests.conftest import ROOT

# Commands run one after the other here, so they can share what they compiled.
COMPILATIONS = tempfile.TemporaryDirectory()
_CACHE_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
)


def train_command(workdir, *extra, variant="smoke"):
    """Arguments that train the smoke config into a workdir."""
    return (
        "mmrl.main",
        f"--config=configs/pretrain.py:{variant}",
        f"--workdir={workdir}",
        f"--config.compile_cache={COMPILATIONS.name}",
        *extra,
    )


def run_here(module, *arguments):
    """Runs python -m MODULE ARGUMENTS in this process; returns its exit status."""
    kept = {name: getattr(jax.config, name) for name in _CACHE_SETTINGS}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        patch.delitem(sys.modules, module, raising=False)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            return stop.code
        finally:
            for name, value in kept.items():
                jax.config.update(name, value)
    return 0


def refusal(capsys, module, *arguments):
    """Runs python -m MODULE ARGUMENTS in this process and returns its one line of error."""
    code = run_here(module, *arguments)
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    return err
