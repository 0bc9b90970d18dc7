"""The scaling benchmark: what it reads off a program, and that FSDP divides what it should."""

import json

import pytest

from benchmarks import scaling

PROGRAM = """
HloModule jit_step, num_partitions=8

%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %permute = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1}}
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %permute)
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (a: f32[8,2], b: bf16[3]) -> f32[8] {
  %gather = f32[8,2]{1,0} all-gather(%a), dimensions={0}
  %both = (f32[], bf16[3]{0}) all-reduce(%c, %b), to_apply=%add
  %start = (f32[1]{0}, f32[8]{0}) all-gather-start(%d), dimensions={0}
  %done = f32[8]{0} all-gather-done(%start)
  %scatter = f32[2]{0} reduce-scatter(%e), replica_groups=[2,4]<=[8], to_apply=%add
  %loop = (s32[], f32[4]{0}) while(%init), condition=%c, body=%body.1, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %r = f32[8]{0} copy(%done)
}
"""


def test_collectives_are_read_off_the_program_and_loops_count_their_rounds():
    assert scaling.collectives(PROGRAM) == {
        "all-gather": (2, 8 * 2 * 4 + 8 * 4),
        "all-reduce": (1, 4 + 3 * 2),
        "reduce-scatter": (1, 4 * 2 * 4),
        "collective-permute": (5, 5 * 4 * 4),
    }


@pytest.mark.slow
@pytest.mark.optax
def test_under_fsdp_weights_travel_and_everything_else_falls_with_the_devices(tmp_path, capsys):
    """A pair of narrow transformers on one and on eight devices, compiled."""
    config = tmp_path / "config.py"
    config.write_text(
        "from benchmarks import scaling\n"
        "def get_config():\n"
        "    config = scaling.default_config()\n"
        "    for side in ('image', 'text'):\n"
        "        config.model[side].update({'width': 64, 'depth': 1, 'num_heads': 2})\n"
        "    config.data.image_size, config.data.vocab_size = 64, 512\n"
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
