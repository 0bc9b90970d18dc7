"""The scaling benchmark: FSDP divides the state, and communication is near the minimum."""

import json

import pytest

from benchmarks import scaling


@pytest.mark.exhaustive
@pytest.mark.optax
def test_under_fsdp_weights_travel_and_everything_else_falls_with_the_devices(tmp_path, capsys):
    """Narrow transformers, compiled for one and for eight devices."""
    config = tmp_path / "config.py"
    config.write_text(
        "from benchmarks import scaling\n"
        "def get_config():\n"
        "    config = scaling.default_config()\n"
        "    for side in ('image', 'text'):\n"
        "        config.towers[side].update({'width': 64, 'depth': 1, 'num_heads': 2})\n"
        "    config.towers.image.size, config.towers.text.vocab_size = 64, 512\n"
        "    return config\n"
    )
    file = tmp_path / "rows.json"
    scaling.main([f"--config={config}", "--devices=1,8", f"--json={file}"])
    assert "sent / must" in capsys.readouterr().out
    one, eight = json.loads(file.read_text())["rows"]
    for name, most in (("parameters", 1.15), ("optimizer", 1.15), ("average", 1.15)):
        assert 1 <= 8 * eight[name] / one[name] < most, name
    assert 8 * eight["flops"] / one["flops"] < 1.25
    assert eight["needed_flops"] == one["needed_flops"]
    # Were activations brought to the parts of each kernel, it would be many times as much.
    assert eight["sent"] < 1.5 * eight["must_send"]
    assert one["collectives"] == {}
