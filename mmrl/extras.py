"""The packages that some commands need beside those of training, and how to install them.

They are the extras of pyproject.toml. Messages name the packages: the name mmrl on the Python
package index belongs to another project, so `pip install 'mmrl[serve]'` would install that one.
"""

import shlex
from collections.abc import Mapping

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "cuda": ("jax[cuda13]",),
    "tpu": ("jax[tpu]",),
    "beam": ("apache-beam",),
    "hub": ("huggingface_hub",),
    "search": ("faiss-cpu",),
    "hdf5": ("h5py",),
    "serve": ("starlette", "uvicorn", "prometheus_client"),
    "trackers": ("wandb", "mlflow-skinny", "sqlalchemy", "alembic"),
    "cloud": ("s3fs",),
}
"""Extra -> the packages that it adds."""


def command(extra: str) -> str:
    """What installs the packages of an extra."""
    return f"pip install {shlex.join(PACKAGES[extra])}"
