"""Every benchmark prints its help."""

import pytest

from tests.commands import run_here
from tests.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
NAMES = sorted(
    path.stem for path in BENCHMARKS.glob("*.py") if 'if __name__ == "__main__"' in path.read_text()
) + sorted(path.parent.name for path in BENCHMARKS.glob("*/__main__.py"))


@pytest.mark.default_cases(7)
@pytest.mark.parametrize("name", NAMES)
def test_help(name, capsys):
    assert run_here(f"benchmarks.{name}", "--help") in (0, None)
    assert "options:" in capsys.readouterr().out
