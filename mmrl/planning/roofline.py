"""Lower bound on the time of a step (Williams, Waterman, Patterson 2009, "Roofline").

    compute       FLOPs that one device executes / its peak in bfloat16
    memory        bytes of main memory that it reads and writes / bandwidth of the memory
    interconnect  bytes that it sends / bandwidth of its links. A permute sends to one neighbour
                  and uses one link; other collectives can use all axes of the torus, hence all
                  links.

If the three overlap perfectly, the step takes as long as the longest of them; if they do not
overlap at all, it takes their sum. Both figures ignore latency, arithmetic other than matrix
products and convolutions, and the lower efficiency of small matrix products.
"""

import dataclasses
from collections.abc import Mapping

from mmrl.devices.hardware import Chip
from mmrl.planning.traffic import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds per step that each resource needs."""

    compute: float
    memory: float
    interconnect: float

    @property
    def least(self) -> float:
        """Seconds per step if all three overlap."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def serial(self) -> float:
        """Seconds per step if nothing overlaps."""
        return self.compute + self.memory + self.interconnect

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, name))


def roofline(
    chip: Chip,
    *,
    flops: float,
    memory_bytes: float,
    collectives: Mapping[str, Collective],
) -> Roofline:
    """Computes the bound of the module docstring.

    Args:
      flops, memory_bytes: of one device in one step.
      collectives: kind -> collectives of one step.
    """
    sending = 0.0
    for kind, collective in collectives.items():
        bandwidth = chip.link_bandwidth if kind == "collective-permute" else chip.interconnect
        sending += collective.bytes / bandwidth
    return Roofline(flops / chip.peak, memory_bytes / chip.memory_bandwidth, sending)
