"""The memory that a compiled program takes on a device."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that XLA allocates on one device.

    Attributes:
      arguments: the state and the batch.
      temporaries: all intermediate arrays.
      outputs: the outputs of the step that do not reuse the memory of donated arguments.
      peak: the sum of the three.
    """

    arguments: int
    temporaries: int
    outputs: int
    peak: int

    @classmethod
    def of(cls, compiled: Any) -> "Memory":
        """That of a compiled program, a `jax.stages.Compiled`."""
        stats = compiled.memory_analysis()
        arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
        outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
        # XLA's own peak counts live arrays only, without the gaps between them in the allocation.
        return cls(arguments, temporaries, outputs, arguments + temporaries + outputs)
