"""The least time a step can take on a chip (Williams, Waterman, Patterson 2009, "Roofline").

    compute       FLOPs that one device executes / its peak in bfloat16
    memory        bytes of main memory that it reads and writes / bandwidth of the memory
    interconnect  bytes that it sends / bandwidth of its links: all of them together, for a
                  collective can use every axis of the torus, but one link for a permute, which
                  goes to one neighbour

The step takes at least the longest of the three, were all of them to overlap perfectly, and their
sum if none does. Neither knows of latencies, of arithmetic that is no matrix product, or of matrix
products too small to fill the unit.
"""

import dataclasses
from collections.abc import Mapping

from mmrl.devices.hardware import Chip
from mmrl.planning.traffic import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step."""

    compute: float
    memory: float
    interconnect: float

    @property
    def least(self) -> float:
        """All three at once."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def serial(self) -> float:
        """One after the other."""
        return self.compute + self.memory + self.interconnect

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, name))


def roofline(
    chip: Chip,
    *,
    flops: float,
    memory_bytes: float,
    collectives: Mapping[str, Collective],
) -> Roofline:
    """The formula above.

    Args:
      flops, memory_bytes: of one device in one step.
      collectives: kind -> bytes that one device sends in one step.
    """
    sending = 0.0
    for kind, collective in collectives.items():
        width = chip.link_bandwidth if kind == "collective-permute" else chip.interconnect
        sending += collective.bytes / width
    return Roofline(flops / chip.peak, memory_bytes / chip.memory_bandwidth, sending)
