"""Every benchmark prints its help."""

import pytest

from tests.commands import run_here
from tests.conftest import ROOT

NAMES = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("name", NAMES)
def test_help(name, capsys):
    assert run_here(f"benchmarks.{name}", "--help") in (0, None)
    assert "options:" in capsys.readouterr().out
