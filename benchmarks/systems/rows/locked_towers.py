"""Locked towers teach a new one, and no bit of them changes."""

from typing import Any

from benchmarks.systems.check import UNTRAINED, Claim, Runs, both_ways
from mmrl.training.checkpoint import Checkpoints, digest

NUMBERS = ()
EXPRESSED = "two locked towers, one of them with batch statistics, that teach a third (LiT)"
DIFFERS = "both teachers start at random; real ones have `init`"
RUNS = {"trained": ("locked_towers",), "untrained": ("locked_towers", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """Shares of unchanged towers between the first and the last checkpoint, and R@10."""
    saved = Checkpoints(runs["trained"], read_only=True)
    try:
        first, last = (
            saved.read_arrays(("params", "variables", "opt_state"), step)
            for step in (saved.steps()[0], saved.steps()[-1])
        )
    finally:
        saved.close()

    def same(part: str, tower: str) -> float:
        one, two = (_tower(state, part, tower) for state in (first, last))
        return float(digest(one) == digest(two))

    locked = [("params", "text"), ("params", "cnn"), ("variables", "cnn")]
    return {
        "locked": sum(same(*one) for one in locked) / len(locked),
        "learned": same("params", "image"),
        "R@10": both_ways(runs["trained"], "R@10"),
        "images permuted": both_ways(runs["trained"], "R@10_images_permuted"),
        "untrained": both_ways(runs["untrained"], "R@10"),
    }


def _tower(state: dict[str, Any], part: str, tower: str) -> Any:
    return state[part]["towers"][tower]


CLAIMS = (
    Claim("share of locked arrays and statistics that are equal bit for bit", "locked", least=1.0),
    Claim("the new tower is equal to its first checkpoint", "learned", most=0.0),
    Claim(
        "image and report by a random text tower, R@10", "R@10", ("images permuted", "untrained")
    ),
)
