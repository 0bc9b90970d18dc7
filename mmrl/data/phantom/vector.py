"""A vector of a study: a third modality that states the findings in a noisy linear code.

Each fact about a finding (its name, and its name with side, zone or severity) has a code of random
numbers, which depends on nothing but the fact. The vector of a study is the sum of the codes of its
facts plus Gaussian noise. Codes have standard normal elements.
"""

import functools
import hashlib

import numpy as np

from mmrl.data.phantom.dice import stream
from mmrl.data.phantom.study import Study
from mmrl.types import Finding


def vector(chosen: Study, size: int, noise: float, missing: float) -> tuple[float, ...] | None:
    """The vector of a study, or None where it is missing.

    Args:
      size: number of elements.
      noise: standard deviation of the noise of each element.
      missing: probability that a study has no vector. Studies that have none at one probability
        have none at any higher one.
    """
    if stream(chosen.seed, "vector missing", chosen.index).unit() < missing:
        return None
    total = np.zeros(size)
    for finding in chosen.findings:
        for fact in facts(finding):
            total += _code(fact, size)
    bits = int(stream(chosen.seed, "vector", chosen.index).unit() * 2**53)
    total += noise * np.random.Generator(np.random.PCG64(bits)).standard_normal(size)
    return tuple(total.astype(np.float32).tolist())


def facts(finding: Finding) -> tuple[str, ...]:
    """What is coded of a finding: "nodule", "nodule, side left", and so on."""
    details = {"side": finding.side, "zone": finding.zone, "severity": finding.severity}
    stated = (f"{finding.name}, {kind} {value}" for kind, value in details.items() if value)
    return (finding.name, *stated)


@functools.lru_cache(maxsize=256)
def _code(fact: str, size: int) -> np.ndarray:
    digest = hashlib.blake2b(f"phantom vector/{fact}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    code = rng.standard_normal(size)
    code.setflags(write=False)
    return code
