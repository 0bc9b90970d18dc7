"""Plans a training step for devices that need not be present: memory, FLOPs, collectives, time.

Compiles the step that training runs, for a TPU slice (this needs libtpu, requirements-tpu.txt, but
no TPU) or for N virtual CPU devices, and reads the compiled program. No data are read: the size of
the vocabulary is config.data.vocab_size. The exit status is 0 whether or not the step fits.

    python -m mmrl.plan --config=configs/recipes/vit_b16.py --topology=v5e:16x16
    python -m mmrl.plan --config=configs/pretrain.py --topology=cpu:8 --sweep
"""

from collections.abc import Mapping
from typing import Any

from absl import flags

from mmrl import cli, files
from mmrl.planning import search, terminal
from mmrl.planning.measure import Plan, make_plan
from mmrl.planning.topology import find
from mmrl.types import InputError

_FLAGS = cli.new_flags()
_CONFIG = cli.define_config(_FLAGS, "FILE[:VARIANT,...]: The preset to plan. Required.")
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "DEVICES: The devices to plan for, such as v5e:16x16, v5p:4x4x4 or cpu:8. Required.",
    flag_values=_FLAGS,
)
_BATCH = flags.DEFINE_integer(
    "batch", None, "N: Global batch size; by default config.batch_size.", flag_values=_FLAGS
)
_LARGEST = flags.DEFINE_bool(
    "largest_batch", False, "Searches the largest global batch that fits.", flag_values=_FLAGS
)
# A flag that may be given alone or with the name of a sweep.
_SWEEP: flags.FlagHolder[str | None] = flags.DEFINE_flag(
    flags.Flag(
        flags.ArgumentParser(),
        flags.ArgumentSerializer(),
        "sweep",
        None,
        f"SWEEP: Compares meshes and rematerialisation: {', '.join(search.SWEEPS)}; alone: all.",
        boolean=True,
    ),
    _FLAGS,
)
_JSON = flags.DEFINE_string(
    "json", None, "FILE: Also writes the plans to this file.", flag_values=_FLAGS
)


def main() -> None:
    """Plans one config on one topology."""
    config = cli.required_config(_CONFIG)
    name = cli.required("topology", _TOPOLOGY.value)
    if _JSON.value:
        cli.output("json", _JSON.value, is_file=True)
    if _BATCH.value is not None:
        if _BATCH.value < 1:
            raise InputError(f"--batch={_BATCH.value} must be at least 1")
        config.batch_size = _BATCH.value
    asked = _SWEEP.value
    kind = "all" if asked == "true" else None if asked == "false" else asked
    if kind is not None and kind not in search.SWEEPS:
        raise InputError(f"--sweep={kind}; choices: {', '.join(search.SWEEPS)}")
    topology = find(name)
    if kind is not None:
        plans = search.sweep(config, topology, kind, say=_say)
        _print(terminal.table(plans))
        _write({name: _plain(plan) for name, plan in plans.items()})
        return
    plan = make_plan(config, topology)
    _print(terminal.lines(plan))
    found = plan.to_dict()
    if _LARGEST.value:
        largest = search.largest_batch(config, topology, plan, say=_say)
        _say(
            "largest batch none: not even the smallest that the mesh divides fits"
            if largest is None
            else f"largest batch {largest.batch_size:,}"
        )
        found["largest_batch"] = None if largest is None else largest.to_dict()
    _write(found)


def _plain(plan: Plan | str) -> Any:
    return {"refused": plan} if isinstance(plan, str) else plan.to_dict()


def _print(lines: Any) -> None:
    for line in lines:
        _say(line)


def _say(line: str) -> None:
    print(line, flush=True)


def _write(content: Mapping[str, Any]) -> None:
    if _JSON.value:
        files.write_json(_JSON.value, content)


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__, needs=("config", "topology"))
