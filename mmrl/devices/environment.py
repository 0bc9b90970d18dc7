"""Environment variables with the settings of a run of several processes.

`mmrl.devices.distributed` reads them. They are in a module of their own, so that commands that
always run as one process can check them without importing jax.
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
    """The variables that are set, as "NAME=value"; for commands that always run as one process."""
    names = (*VARIABLES.values(), MODE)
    return [f"{name}={environment[name]}" for name in names if environment.get(name)]
