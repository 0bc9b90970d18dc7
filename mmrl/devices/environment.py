"""The environment variables that tell a process its place in a run of several.

Apart from `mmrl.devices.distributed`, which reads them, so that a command that is always one
process can look for them without importing jax.
"""

from collections.abc import Mapping

VARIABLES = {
    "coordinator": "MMRL_COORDINATOR",
    "num_processes": "MMRL_NUM_PROCESSES",
    "process_id": "MMRL_PROCESS_ID",
}
MODE = "MMRL_DISTRIBUTED"
TIMEOUT = "MMRL_START_TIMEOUT"


def wanted(environment: Mapping[str, str]) -> list[str]:
    """The variables that ask for several processes, for commands that are always one."""
    names = (*VARIABLES.values(), MODE)
    return [f"{name}={environment[name]}" for name in names if environment.get(name)]
