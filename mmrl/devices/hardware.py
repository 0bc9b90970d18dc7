"""Specifications of accelerator chips: arithmetic, memory and links.

Sources:
  Google: pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation, section
    "System architecture". The bandwidth of a link is the bidirectional interconnect bandwidth of a
    chip divided by its ports and by two directions.
  NVIDIA: data sheet of each product; FLOP/s without sparsity. The bandwidth of a link is the NVLink
    bandwidth of a GPU divided by its links and by two directions.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Specification of one chip. Units are decimal, except for the memory of TPUs.

    Attributes:
      kind: prefix of JAX's `device_kind`.
      peak: dense bfloat16 FLOP/s.
      memory: bytes of HBM.
      memory_bandwidth: bytes/s of HBM, reads and writes together.
      link_bandwidth: bytes/s of one link to another chip, in one direction.
      links: number of links of a chip.
    """

    kind: str
    peak: float
    memory: float
    memory_bandwidth: float = 0.0
    link_bandwidth: float = 0.0
    links: int = 0

    @property
    def interconnect(self) -> float:
        """Bytes/s that a chip sends over all of its links together."""
        return self.link_bandwidth * self.links


_GIB = 2.0**30

# `find` takes the first match, so "TPU v5 lite" must precede "TPU v5" (v5p).
CHIPS = (
    Chip("TPU v6 lite", 918e12, 32 * _GIB, 1600e9, 100e9, 4),
    Chip("TPU v6e", 918e12, 32 * _GIB, 1600e9, 100e9, 4),
    Chip("TPU v5 lite", 197e12, 16 * _GIB, 819e9, 50e9, 4),
    Chip("TPU v5e", 197e12, 16 * _GIB, 819e9, 50e9, 4),
    Chip("TPU v5p", 459e12, 95 * _GIB, 2765e9, 100e9, 6),
    Chip("TPU v5", 459e12, 95 * _GIB, 2765e9, 100e9, 6),
    Chip("TPU v4", 275e12, 32 * _GIB, 1200e9, 50e9, 6),
    Chip("TPU v3", 123e12, 32 * _GIB, 900e9),
    Chip("NVIDIA B200", 2250e12, 180e9, 8000e9, 50e9, 18),
    Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 25e9, 18),
    Chip("NVIDIA H100 80GB HBM3", 989e12, 80e9, 3350e9, 25e9, 18),
    Chip("NVIDIA H100 PCIe", 756e12, 80e9, 2000e9),
    Chip("NVIDIA A100-SXM4-80GB", 312e12, 80e9, 2039e9, 25e9, 12),
    Chip("NVIDIA A100", 312e12, 40e9, 1555e9, 25e9, 12),
    Chip("NVIDIA L4", 121e12, 24e9, 300e9),
)


def find(device_kind: str) -> Chip | None:
    """The chip of JAX's `device_kind`; None if unknown, for example for a CPU."""
    return next((chip for chip in CHIPS if device_kind.startswith(chip.kind)), None)
