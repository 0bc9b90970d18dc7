"""PLIP of persons: pairs of one identity are positives of each other."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.recalls import held_out
from benchmarks.systems.check import UNTRAINED, Claim, Runs
from mmrl.evaluators import statistics
from mmrl.objectives.identity_contrastive import identity_contrastive_loss
from mmrl.training import run

NUMBERS = (53,)
EXPRESSED = "the contrast whose targets are all pairs of one identity"
DIFFERS = (
    "phantoms instead of persons: the identity is the set of findings of three kinds; no "
    "colourisation, no prediction of attributes"
)
RUNS = {
    "trained": ("plip_person",),
    "pairs": ("plip_person:pairs",),
    "untrained": ("plip_person", *UNTRAINED),
}


def values(runs: Runs) -> dict[str, float]:
    """Of one seed."""
    rng = np.random.default_rng(runs.seed)
    shares = {label: _shares(runs, label) for label in RUNS}
    return {
        "pull": _pull(rng, np.arange(12) // 3),
        "pull, pairs alone": _pull(rng, np.arange(12)),
        "same identity": shares["trained"][0],
        "pairs alone": shares["pairs"][0],
        "untrained": shares["untrained"][0],
        "permuted": shares["trained"][1],
        "chance": shares["trained"][2],
    }


def _pull(rng: np.random.Generator, identity: np.ndarray) -> float:
    """How much a step of the loss raises the similarity of other pairs, by threes, in the mean."""
    size = len(identity)
    image, text = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, size, 9))
    )

    def loss(added: jax.Array) -> jax.Array:
        # Further features add a matrix of similarities without changing the others.
        eye = jnp.eye(size)
        return identity_contrastive_loss(
            jnp.concatenate([image, added], axis=1),
            jnp.concatenate([text, eye], axis=1),
            jnp.float32(0),
            jnp.asarray(identity),
        )

    gradient = np.asarray(jax.grad(loss)(jnp.zeros((size, size))))
    threes = np.arange(size) // 3
    among = (threes[:, None] == threes) & ~np.eye(size, dtype=bool)
    return float(-gradient[among].mean())


def _shares(runs: Runs, label: str) -> tuple[float, float, float]:
    """The share of the ten reports nearest to an image that have its identity.

    Returns:
      With the true image, with that of another patient, and of reports in random order.
    """
    trained = run.restore(runs[label])
    data = held_out(trained)
    encoded = trained.predict.encode(trained.state, data, ["image.embedding", "text.embedding"])
    image, text = encoded["image.embedding"], encoded["text.embedding"]
    labels = data.labels()[1]
    same = (labels[:, None] == labels[None]).all(axis=-1)
    nearest = np.argsort(-(image @ text.T), axis=1, kind="stable")[:, :10]
    order = statistics.permutation_between_patients(data.patients, np.random.default_rng(0))
    true, foreign = (
        float(np.take_along_axis(same, rows, axis=1).mean()) for rows in (nearest, nearest[order])
    )
    return true, foreign, float(same.mean())


CLAIMS = (
    Claim("pull between pairs of one identity", "pull", beside=("pull, pairs alone",)),
    Claim(
        "nearest ten reports of the identity of the image",
        "same identity",
        beside=("pairs alone", "untrained", "permuted", "chance"),
    ),
)
