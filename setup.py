"""Puts the presets into the wheel, as the package mmrl.shipped.configs; see mmrl/presets.py.

All else stands in pyproject.toml. A package `configs` at the top level of an environment would
collide with those of others.
"""

from setuptools import find_packages, setup

presets = [f"mmrl.shipped.{name}" for name in find_packages(include=["configs", "configs.*"])]
setup(
    packages=[*find_packages(include=["mmrl", "mmrl.*"]), *presets],
    package_dir={"mmrl.shipped.configs": "configs"},
)
