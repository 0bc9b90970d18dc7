"""Parsing of compiled programs: collectives, loops, memory traffic; and the roofline."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmrl.devices import hardware, sharding
from mmrl.models.text.transformer import Transformer
from mmrl.planning import hlo, traffic
from mmrl.planning.roofline import roofline
from mmrl.planning.traffic import Collective

V5E = hardware.find("TPU v5 lite")

PROGRAM = """
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused_start (a: bf16[4,8]) -> (bf16[4,8], bf16[16,8]) {
  %a = bf16[4,8]{1,0} parameter(0)
  %gather.1 = bf16[16,8]{1,0} all-gather(%a), channel_id=7, replica_groups=[2,4]<=[8]
  ROOT %start = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) custom-call(%gather.1), custom_call_target="Start"
}

%fused_done (a: bf16[4,8]) -> bf16[16,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  ROOT %gather.2 = bf16[16,8]{1,0} all-gather(%a), channel_id=7, replica_groups=[2,4]<=[8]
}

%body (carry: (s32[], f32[64])) -> (s32[], f32[64]) {
  %carry = (s32[], f32[64]{0}) parameter(0)
  %n = s32[] get-tuple-element(%carry), index=0
  %v = f32[64]{0} get-tuple-element(%carry), index=1
  %step = bf16[16,8]{1,0} fusion(%v), kind=kCustom, calls=%fused_done
  %hop = f32[64]{0} collective-permute(%v), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %one = s32[] constant(1)
  %next = s32[] add(%n, %one)
  ROOT %out = (s32[], f32[64]{0}) tuple(%next, %hop)
}

%condition (carry.1: (s32[], f32[64])) -> pred[] {
  %carry.1 = (s32[], f32[64]{0}) parameter(0)
  %n.1 = s32[] get-tuple-element(%carry.1), index=0
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%n.1, %limit), direction=LT
}

%rare (r: f32[64]) -> f32[64] {
  %r = f32[64]{0} parameter(0)
  ROOT %all.9 = f32[64]{0} all-reduce(%r), replica_groups={{0,1,2,3}}, to_apply=%add
}

%usual (u: f32[64]) -> f32[64] {
  ROOT %u = f32[64]{0} parameter(0)
}

ENTRY %main (p: f32[64], q: bf16[4,8], on: pred[]) -> f32[64] {
  %p = f32[64]{0} parameter(0)
  %q = bf16[4,8]{1,0} parameter(1)
  %on = pred[] parameter(2)
  %all = f32[64]{0} all-reduce(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %first = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) fusion(%q), kind=kCustom, calls=%fused_start
  %zero = s32[] constant(0)
  %begin = (s32[], f32[64]{0}) tuple(%zero, %all)
  %loop = (s32[], f32[64]{0}) while(%begin), condition=%condition, body=%body
  %end = f32[64]{0} get-tuple-element(%loop), index=1
  %part = f32[16]{0} reduce-scatter(%end), replica_groups=mesh['x'=4,'y'=2] {'x'}, to_apply=%add
  ROOT %pick = f32[64]{0} conditional(%on, %end, %end), branch_computations={%rare, %usual}, OP_NAME
}
""".replace("OP_NAME", 'metadata={op_name="jit(step)/spill/cond"}')


def test_collectives_of_a_program_by_hand():
    found = traffic.collectives(hlo.parse(PROGRAM), 8, rare="spill")
    assert found == {
        "all-reduce": Collective(1, 2 * 3 / 4 * 256, 256),
        # Two fusions, one in the loop, quote one gather; each of 4 devices puts in 64 bytes.
        "all-gather": Collective(1, 3 * 64, 4 * 64),
        "collective-permute": Collective(12, 12 * 256, 12 * 256),
        "reduce-scatter": Collective(1, 3 / 4 * 256, 256),
    }
    with_rare = traffic.collectives(hlo.parse(PROGRAM), 8)
    assert with_rare["all-reduce"] == Collective(2, 2 * 2 * 3 / 4 * 256, 2 * 256)


def test_loops_count_as_often_as_they_run_or_say_so():
    noted = PROGRAM.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    )
    assert traffic.collectives(hlo.parse(noted), 8)["collective-permute"].count == 5
    unknown = PROGRAM.replace("direction=LT", "direction=NE")
    found = traffic.collectives(hlo.parse(unknown), 8)
    assert found["collective-permute"] == Collective(1, 256, 256, exact=False)
    assert found["all-reduce"].exact


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups={}", 8),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", 2),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", 4),
        ("source_target_pairs={{0,1},{1,0}}", 8),
    ],
)
def test_groups_of_devices(groups, size):
    assert traffic.group_size(f"channel_id=1, {groups}, dimensions={{0}}", 8) == size


def test_unknown_formats_of_groups_are_refused():
    assert traffic.group_size("channel_id=1, replica_groups={}, to_apply=%add", 8) == 8
    with pytest.raises(ValueError, match="unknown format: replica_groups=@x"):
        traffic.group_size("replica_groups=@x{'a'}", 8)


def test_arrays_of_types():
    kinds = (
        "(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, f32[3]{0}, s4[3]{0}, pred[], /*index=4*/u32[2]{0:S(4)})"
    )
    sizes = [(64, False), (12, True), (2, True), (1, True), (8, False)]
    assert [tuple(array) for array in hlo.arrays(kinds)] == sizes
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("not a program")


def compiled(function, *specs, shapes):
    mesh = sharding.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    placed = [NamedSharding(mesh, spec) for spec in specs]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    made = jax.jit(function, in_shardings=placed, out_shardings=NamedSharding(mesh, P()))
    return hlo.parse(made.lower(*arguments).compile().as_text())


def test_collectives_of_a_compiled_program():
    """A product over a sharded axis needs one all-reduce; here in a scan of five iterations."""

    program = compiled(lambda x, w: x @ w, P(None, "data"), P("data"), shapes=[(16, 64), (64, 24)])
    assert traffic.collectives(program, 8) == {
        "all-reduce": Collective(1, 2 * 7 / 8 * 16 * 24 * 4, 16 * 24 * 4)
    }

    def repeated(x, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh((c @ w) @ w.T), None), x, length=5)[0].sum()

    program = compiled(repeated, P(), P(None, "data"), shapes=[(16, 64), (64, 24)])
    assert traffic.collectives(program, 8)["all-reduce"].count == 5


def test_memory_traffic_by_hand():
    lines = """
ENTRY %main (p: f32[100,8], at: s32[]) -> f32[8] {
  %p = f32[100,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%p, %at, %zero), dynamic_slice_sizes={1,8}
  %chip = f32[1,8]{1,0:S(1)} copy(%row)
  %twice = f32[1,8]{1,0} add(%chip, %chip)
  ROOT %out = f32[8]{0} bitcast(%twice)
}
"""
    # Slice: read and written; copy: read alone; sum: written alone, from on-chip memory.
    assert traffic.memory_bytes(hlo.parse(lines)) == 2 * 32 + 32 + 32


def test_roofline_in_closed_form():
    limits = roofline(
        V5E,
        flops=197e12,
        memory_bytes=2 * 819e9,
        collectives={
            "all-reduce": Collective(3, 200e9),
            "collective-permute": Collective(8, 100e9),
        },
    )
    assert (limits.compute, limits.memory, limits.interconnect) == pytest.approx((1.0, 2.0, 3.0))
    assert (limits.least, limits.serial) == pytest.approx((3.0, 6.0))
    assert limits.bound == "interconnect"


def test_fsdp_moves_parameters_not_activations():
    """Without constraints the compiler shards activations by features and sends much more.

    A gather each in the forward and the backward pass, and an all-reduce of the gradients, which
    on a CPU replaces a reduce-scatter: up to 4 times, and little else.
    """
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
    options = {"vocab_size": 512, "length": 50, "width": 64, "depth": 3, "num_heads": 4}
    options |= {"scan_layers": True, "remat": "dots", "dtype": jnp.bfloat16}
    abstract = nnx.eval_shape(lambda: Transformer(**options, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(abstract)
    places = sharding.variable_shardings(params, mesh)
    params = jax.tree.map(
        lambda array, place: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place),
        nnx.to_pure_dict(params),
        places,
    )
    spread = sharding.batch_sharding(mesh)
    tokens, mask = (jax.ShapeDtypeStruct((64, 50), t, sharding=spread) for t in (jnp.int32, bool))

    def loss(params, tokens, mask):
        pooled = nnx.merge(graphdef, params)(tokens, mask, train=True).pooled
        return jnp.sum(pooled.astype(jnp.float32) ** 2)

    gradient = jax.jit(jax.grad(loss), out_shardings=places)
    # The attention of JAX promotes on its way back, too.
    with jax.numpy_dtype_promotion("standard"):
        program = hlo.parse(gradient.lower(params, tokens, mask).compile().as_text())
    moved = sum(one.bytes for one in traffic.collectives(program, 8).values())
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert size < moved < 6 * size
