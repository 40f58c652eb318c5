"""Costs read from compiled programs are those worked out by hand, and those that XLA's own analysis has."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from limbeck.model.chips import CHIPS, Chip
from limbeck.model.collectives import Collective, link_seconds
from limbeck.model.compiled import captured_warnings, cost, involuntary, memory, used_of_limit

# A second of compute is 1000 cycles, a byte on the links a second, a FLOP or a byte of HBM next to nothing.
CHIP = Chip("test", 1e12, 1e9, 1e12, 1.0, 1000.0, axes=1)
HEAD = "HloModule jit_f, is_scheduled=true, num_partitions=8\n"


def cycles(n):
    return f'backend_config={{"window_config":{{"estimated_cycles":"{n}"}}}}'


def loop(limit, body="", condition="", start=0, step=1, direction="LT", times="seven"):
    """A loop in the TPU's spelling, which says no count; `body` is inside, `condition` takes the comparison's place."""
    return f"""{HEAD}
%double (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0:T(128)}} parameter(0)
  ROOT %d = f32[8]{{0:T(128)}} add(%p, %p)
}}

%body (t: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {{
  %t = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) parameter(0)
  %one = s32[]{{:T(128)}} constant({step})
  %i = s32[]{{:T(128)}} get-tuple-element(%t), index=0
  %x = f32[8]{{0:T(128)}} get-tuple-element(%t), index=1
  %n = s32[]{{:T(128)}} get-tuple-element(%t), index=2
  %next = s32[]{{:T(128)}} add(%i, %one)
  %y = f32[8]{{0:T(128)}} fusion(%x), kind=kLoop, calls=%double, {cycles(500)}
{body}
  ROOT %out = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) tuple(%next, %y, %n)
}}

%compares (a: s32[], b: s32[]) -> pred[] {{
  %a = s32[]{{:T(128)}} parameter(0)
  %b = s32[]{{:T(128)}} parameter(1)
  ROOT %lt.1 = pred[]{{:T(512)}} compare(%a, %b), direction={direction}
}}

%until (t.1: (s32[], f32[8], s32[])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant({limit})
  %t.1 = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%t.1), index=0
  %n.1 = s32[]{{:T(128)}} get-tuple-element(%t.1), index=2
  {condition or f"ROOT %lt = pred[] compare(%i.1, %limit), direction={direction}"}
}}

ENTRY %main (x.1: f32[8], k: s32[]) -> f32[8] {{
  %x.1 = f32[8]{{0:T(128)}} parameter(0)
  %k = s32[]{{:T(128)}} parameter(1)
  %zero = s32[]{{:T(128)}} constant({start})
  %seven = s32[]{{:T(128)}} constant(7)
  %begin = s32[]{{:T(128)}} copy(%zero)
  %all = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) tuple(%begin, %x.1, %{times})
  %w = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) while(%all), condition=%until, body=%body
  ROOT %r = f32[8]{{0:T(128)}} get-tuple-element(%w), index=1
}}
"""


@pytest.mark.parametrize(
    ("asked", "trips"),
    [
        ({"limit": 5}, 5),
        ({"limit": 5, "direction": "LE"}, 6),
        ({"limit": 5, "start": 2, "step": 2}, 2),
        ({"limit": 0, "start": 5, "step": -2, "direction": "GT"}, 3),
        ({"limit": 6, "direction": "NE"}, 6),
        ({"limit": 0, "start": 3, "direction": "LT"}, 0),
        ({"limit": 5, "condition": "ROOT %f = pred[] fusion(%i.1, %limit), kind=kLoop, calls=%compares"}, 5),
        ({"limit": 5, "condition": "ROOT %lt = pred[] compare(%limit, %i.1), direction=GT"}, 5),
        # What the loop carries along unchanged is as good as a constant.
        ({"limit": 5, "condition": "ROOT %lt = pred[] compare(%i.1, %n.1), direction=LT"}, 7),
    ],
)
def test_a_loop_that_does_not_say_how_often_is_counted_by_its_condition(asked, trips):
    found = cost(loop(**asked), CHIP)
    assert found.compute_seconds == pytest.approx(0.5 * trips)
    assert found.unknown_loops == ()


@pytest.mark.parametrize(
    "asked",
    [
        {"limit": 5, "condition": "ROOT %lt = pred[] compare(%i.1, %n.1), direction=LT", "times": "k"},
        {"limit": 5, "condition": "%c = pred[] compare(%i.1, %limit), direction=LT\n  ROOT %q = pred[] and(%c, %c)"},
        {"limit": 5, "step": 0},
        {"limit": 5, "step": -1},
        {"limit": 5, "direction": "EQ"},
    ],
)
def test_a_loop_nobody_knows_the_count_of_is_counted_once_and_named(asked):
    found = cost(loop(**asked), CHIP)
    assert found.unknown_loops == ("body",)
    assert found.compute_seconds == pytest.approx(0.5)


def entry(lines, before=""):
    start = "ENTRY %main (p: f32[8,16]) -> f32[8,16] {\n  %p = f32[8,16]{1,0} parameter(0)"
    return f"{HEAD}\n{before}\n{start}\n{lines}\n}}\n"


SUM = "%sum (a: f32[], b: f32[]) -> f32[] {\n  %a = f32[] parameter(0)\n  ROOT %s = f32[] add(%a, %a)\n}\n"


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_2'}", 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a'}", 2),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
        ("replica_groups={}", 8),
    ],
)
def test_groups_are_read_in_every_spelling(groups, size):
    line = f"  ROOT %g = f32[64,16]{{1,0}} all-gather(%p), channel_id=1, {groups}, dimensions={{0}}"
    (found,) = cost(entry(line)).collectives
    assert (found.kind, found.group_size, found.bytes) == ("all-gather", size, 8 * 16 * 4 * size)


def test_bytes_of_each_kind():
    lines = """  %r = f32[8,16]{1,0} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%sum
  %s = f32[1,16]{1,0} reduce-scatter(%r), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%sum
  %t = f32[8,16]{1,0} all-to-all(%r), replica_groups=[1,8]<=[8], metadata={op_name="jit(f)/swap"}
  ROOT %u = f32[8,16]{1,0} collective-permute(%t), source_target_pairs={{0,1},{1,2},{2,0}}"""
    found = cost(entry(lines, SUM)).collectives
    assert [(each.kind, each.bytes, each.group_size) for each in found] == [
        ("all-reduce", 512, 8),
        ("reduce-scatter", 512, 8),
        ("all-to-all", 512, 8),
        ("collective-permute", 512, 3),
    ]
    assert found[2].where == "jit(f)/swap"
    assert found[0].where == "main"


@pytest.mark.parametrize(("value", "kind"), [("0", "all-gather"), ("1", "all-reduce")])
def test_the_sum_of_slices_in_zeros_is_a_gather_and_costs_what_it_is_run_as(value, kind):
    lines = f"""  %c = f32[] constant({value})
  %z = f32[64,16]{{1,0}} broadcast(%c), dimensions={{}}
  %i = s32[] constant(8)
  %d = f32[64,16]{{1,0}} dynamic-update-slice(%z, %p, %i, %i)
  %e = (f32[64,16]{{1,0:S(1)}}, f32[64,16]{{1,0}}, u32[]{{:S(2)}}) copy-start(%d)
  %f = f32[64,16]{{1,0:S(1)}} copy-done(%e)
  ROOT %r = f32[64,16]{{1,0}} all-reduce(%f), replica_groups=[1,8]<=[8], to_apply=%sum"""
    found = cost(entry(lines, SUM), CHIP)
    assert [(each.kind, each.run_as, each.bytes) for each in found.collectives] == [(kind, "all-reduce", 4096)]
    assert found.waiting_seconds == {kind: pytest.approx(2 * 4096 * 7 / 8)}


def test_a_gather_by_a_sum_inside_a_fusion_is_told_too():
    inner = """%place (z: f32[64,16], p: f32[8,16], i: s32[]) -> f32[64,16] {
  %z = f32[64,16]{1,0} parameter(0)
  %p.1 = f32[8,16]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %d = f32[64,16]{1,0} dynamic-update-slice(%z, %p.1, %i, %i)
}
"""
    lines = """  %c = f32[] constant(0)
  %z.1 = f32[64,16]{1,0} broadcast(%c), dimensions={}
  %i.1 = s32[] constant(8)
  %d.1 = f32[64,16]{1,0} fusion(%z.1, %p, %i.1), kind=kLoop, calls=%place
  ROOT %r = f32[64,16]{1,0} all-reduce(%d.1), replica_groups=GROUPS, to_apply=%sum"""
    assert cost(entry(lines.replace("GROUPS", "[1,8]<=[8]"), SUM + inner)).collectives[0].kind == "all-gather"
    # A slice that is not a group's share is something else.
    assert cost(entry(lines.replace("GROUPS", "[2,4]<=[8]"), SUM + inner)).collectives[0].kind == "all-reduce"


def test_a_sum_and_its_slice_in_one_fusion_scatter():
    inner = """%scatters (p: f32[8,16], i: s32[]) -> f32[1,16] {
  %p.1 = f32[8,16]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %r = f32[8,16]{1,0} all-reduce(%p.1), replica_groups=[1,8]<=[8], to_apply=%sum
  ROOT %d = f32[1,16]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={1,16}
}
"""
    lines = "  %i.1 = s32[] constant(1)\n  ROOT %f = f32[1,16]{1,0} fusion(%p, %i.1), kind=kCustom, calls=%scatters"
    found = cost(entry(lines, SUM + inner), CHIP)
    assert [(each.kind, each.bytes, each.count) for each in found.collectives] == [("reduce-scatter", 512, 1)]
    assert found.waiting_seconds == {"reduce-scatter": pytest.approx(512 * 7 / 8)}


TWICE = """%double (q: f32[8,16]) -> f32[8,16] {
  %q = f32[8,16]{1,0} parameter(0)
  ROOT %d = f32[8,16]{1,0} add(%q, %q)
}
"""
START = (
    "  %s = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), "
    "source_target_pairs={{0,1},{1,0}}\n"
)
DONE = "  %e = f32[8,16]{1,0} collective-permute-done(%s)\n"
WORK = f"  %w = f32[8,16]{{1,0}} fusion(%p), kind=kLoop, calls=%double, {cycles(300_000)}\n"


def test_what_is_computed_between_start_and_end_hides_a_collective():
    # 512 bytes over one of the two links of the one axis, each of half a byte a second: 1024 seconds.
    beside = cost(entry(START + WORK + DONE.replace("%e", "ROOT %e"), TWICE), CHIP)
    assert beside.overlapped_seconds == {"collective-permute": pytest.approx(1024)}
    assert beside.waiting_seconds == {}
    assert beside.seconds == pytest.approx(1024)
    after = cost(entry(START + DONE + WORK.replace("%w", "ROOT %w"), TWICE), CHIP)
    assert after.overlapped_seconds == {}
    assert after.waiting_seconds == {"collective-permute": pytest.approx(1024)}
    assert after.seconds == pytest.approx(300 + 1024)


CHAIN = """, channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2"}}"""
GATHER = f"  %g = f32[64,16]{{1,0}} all-gather(%q){CHAIN}\n"
ASYNC = f"""%starts (q: f32[8,16]) -> (f32[8,16], f32[64,16]) {{
  %q = f32[8,16]{{1,0}} parameter(0)
{GATHER}  ROOT %c = (f32[8,16]{{1,0}}, f32[64,16]{{1,0}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion.1 (q: f32[8,16]) -> (f32[8,16], f32[64,16], f32[8,16]) {{
  %q = f32[8,16]{{1,0}} parameter(0)
  %d = f32[8,16]{{1,0}} add(%q, %q)
{GATHER}  ROOT %t = (f32[8,16]{{1,0}}, f32[64,16]{{1,0}}, f32[8,16]{{1,0}}) tuple(%q, %g, %d)
}}

%ends (q: f32[8,16]) -> f32[64,16] {{
  %q = f32[8,16]{{1,0}} parameter(0)
{GATHER}  ROOT %c = f32[64,16]{{1,0}} custom-call(%g), custom_call_target="AsyncCollectiveDone"
}}
"""
STARTS = "  %a = (f32[8,16]{1,0}, f32[64,16]{1,0}) fusion(%p), kind=kCustom, calls=%starts\n"
STEP = (
    "  %b = (f32[8,16]{1,0}, f32[64,16]{1,0}, f32[8,16]{1,0}) fusion(%p), kind=kOutput, "
    f"calls=%async_collective_fusion.1, {cycles(100_000)}\n"
)
ENDS = "  ROOT %h = f32[64,16]{1,0} fusion(%p), kind=kCustom, calls=%ends\n"


def test_a_chain_of_fusions_that_carries_a_collective_along_is_one_collective():
    found = cost(entry(STARTS + STEP + STEP.replace("%b", "%k") + ENDS, ASYNC), CHIP)
    (one,) = found.collectives
    assert (one.kind, one.bytes, one.count, one.overlapped, one.hidden) == ("all-gather", 4096, 1, True, 200_000)
    assert found.seconds == pytest.approx(4096 * 7 / 8)
    # Read and written once, as far as memory goes, whoever names it; each step doubles 512 bytes besides.
    assert found.hbm_bytes == (512 + 4096) + 2 * (512 + 512)
    (alone,) = cost(entry(STARTS + ENDS, ASYNC), CHIP).collectives
    assert (alone.overlapped, alone.hidden) == (False, 0)


def test_chains_of_fusions_do_not_end_each_other():
    others = ASYNC.replace("%starts", "%starts2").replace("%ends", "%ends2").replace("fusion.1 ", "fusion.2 ")
    others = others.replace('chain_id="0"', 'chain_id="1"')
    start = STARTS.replace("%a ", "%a2 ").replace("%starts", "%starts2")
    end = ENDS.replace("ROOT %h", "%h2").replace("%ends", "%ends2")
    first, second = cost(entry(STARTS + start + end + STEP + ENDS, ASYNC + others), CHIP).collectives
    assert (first.overlapped, first.hidden) == (True, 100_000)
    assert (second.overlapped, second.hidden) == (False, 0)
    idle = STARTS + start + ENDS.replace("ROOT ", "") + end.replace("%h2", "ROOT %h2")
    one, two = cost(entry(idle, ASYNC + others)).collectives
    assert not one.overlapped
    assert not two.overlapped


def test_the_links_are_shared_by_what_hides_behind_the_same_work():
    # Each of the two takes 1024 seconds and is hidden by 1500 of work, but both together take 2048.
    work = WORK.replace("300000", "1500000")
    other = (START + DONE).replace("%s", "%s2").replace("%e", "ROOT %e2").splitlines(keepends=True)
    found = cost(entry(START + other[0] + work + DONE + other[1], TWICE), CHIP)
    assert found.compute_seconds == pytest.approx(1500)
    assert found.seconds == pytest.approx(2048)


def test_a_collective_in_a_loop_counts_as_often_as_it_runs():
    line = "  %r = f32[8]{0:T(128)} all-reduce(%y), replica_groups=[1,8]<=[8], to_apply=%double"
    (found,) = cost(loop(5, line)).collectives
    assert (found.count, found.bytes) == (5, 32)


@pytest.mark.parametrize(
    ("kind", "run_as", "g", "seconds"),
    [
        ("all-gather", "all-gather", 64, 63 / 64 / 6),
        ("reduce-scatter", "reduce-scatter", 64, 63 / 64 / 6),
        ("all-reduce", "all-reduce", 64, 2 * 63 / 64 / 6),
        ("all-gather", "all-reduce", 64, 2 * 63 / 64 / 6),
        # 4 of 4 x 4 x 4 lie along one axis and have two links of six, 16 along two.
        ("all-gather", "all-gather", 4, 3 / 4 / 2),
        ("all-reduce", "all-reduce", 16, 2 * 15 / 16 / 4),
        ("collective-permute", "collective-permute", 64, 1),
        ("all-reduce", "all-reduce", 1, 0),
    ],
)
def test_the_ring_formula(kind, run_as, g, seconds):
    chip = Chip("torus", 1.0, 1.0, 1.0, 6.0, 1.0, axes=3)
    assert link_seconds(Collective(kind, 1.0, 1, g, False, "", run_as, 0.0), chip, 64) == pytest.approx(seconds)


def test_bytes_of_memory_are_those_of_slices_and_not_of_memory_on_the_chip():
    before = """%one_layer (s: f32[32,8,16], i: s32[]) -> f32[1,8,16] {
  %s = f32[32,8,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %v = f32[32,8,16]{2,1,0} bitcast(%s)
  ROOT %d = f32[1,8,16]{2,1,0} dynamic-slice(%v, %i, %i, %i), dynamic_slice_sizes={1,8,16}
}

%into (s: f32[32,8,16], u: f32[1,8,16], i: s32[]) -> f32[32,8,16] {
  %s = f32[32,8,16]{2,1,0} parameter(0)
  %u = f32[1,8,16]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %d = f32[32,8,16]{2,1,0} dynamic-update-slice(%s, %u, %i, %i, %i)
}
"""
    head = "  %s.1 = f32[32,8,16]{2,1,0} parameter(1)\n  %j = s32[]{:S(6)} parameter(2)\n"
    end = "  ROOT %q = s32[]{:S(6)} get-tuple-element(%j), index=0\n"
    taken = "  %l = f32[1,8,16]{2,1,0} fusion(%s.1, %j), kind=kLoop, calls=%one_layer\n"
    put = "  %m = f32[32,8,16]{2,1,0} fusion(%s.1, %l, %j), kind=kLoop, calls=%into\n"
    assert cost(entry(head + taken + end, before)).hbm_bytes == 2 * 512
    assert cost(entry(head + taken + put + end, before)).hbm_bytes == 4 * 512
    by_index = before.replace("dynamic-update-slice(%s, %u, %i, %i, %i)", "scatter(%s, %i, %u), to_apply=%sum")
    assert by_index != before and cost(entry(head + taken + put + end, by_index)).hbm_bytes == 4 * 512
    elsewhere = before.replace("}\n\n%into", '}, execution_thread="sparsecore"\n\n%into')
    assert elsewhere != before and cost(entry(head + taken + put + end, elsewhere)).hbm_bytes == 4 * 512
    on_chip = taken.replace("{2,1,0} fusion", "{2,1,0:S(1)} fusion")
    assert cost(entry(head + on_chip + end, before)).hbm_bytes == 512
    to_chip = "  %c = (f32[8,16]{1,0:S(1)}, f32[8,16]{1,0}, u32[]{:S(2)}) copy-start(%p)\n"
    to_chip += "  %k = f32[8,16]{1,0:S(1)} copy-done(%c)\n  ROOT %n = f32[8,16]{1,0:S(1)} add(%k, %k)\n"
    assert cost(entry(to_chip)).hbm_bytes == 512


def test_a_kernel_counts_what_its_author_says_or_is_named():
    told = '"cost_estimate":{"flops":"3000000000000","transcendentals":"0","bytes_accessed":"777"}'
    line = '  ROOT %k = f32[8,16]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", '
    line += 'metadata={op_name="flash"}, backend_config={"custom_call_config":{"body":"TUzv",TOLD}}'
    found = cost(entry(WORK + line.replace("TOLD", told), TWICE), CHIP)
    assert found.kernels == (("flash", 1, 3e12, 777.0),)
    assert (found.flops, found.compute_seconds) == (3e12, pytest.approx(300 + 3))
    # It may describe itself over several lines.
    words = 'frontend_attributes={kernel_metadata={\n"x":"{\\"block\\": 512}"\n}}, '
    wordy = line.replace("metadata={op", words + "metadata={op")
    assert cost(entry(WORK + wordy.replace("TOLD", told), TWICE), CHIP) == found
    silent = cost(entry(WORK + line.replace("TOLD", '"needs_layout_passes":true'), TWICE), CHIP)
    assert silent.kernels == (("flash", 1, None, None),)
    assert (silent.flops, silent.compute_seconds) == (0, pytest.approx(300))


def test_products_of_matrices_as_tpus_spell_them():
    plain = "  %w = f32[16,32]{1,0} parameter(1)\n  ROOT %c = f32[8,32]{1,0} convolution(%p, %w), dim_labels=bf_io->bf"
    assert cost(entry(plain)).flops == 2 * 8 * 16 * 32
    # Eight heads as the places of a window that is padding but for one: heads by 4096 rows by 128 by 4096, no more.
    heads = """  %x = bf16[4096,4096,1]{0,1,2} parameter(1)
  %w = bf16[8,128,4096]{2,1,0} parameter(2)
  ROOT %c = bf16[4096,8,128]{0,2,1} convolution(%x, %w), WINDOW, dim_labels=bf0_0oi->b0f"""
    window = "window={size=8 pad=7_7 rhs_reversal=1}"
    assert cost(entry(heads.replace("WINDOW", window))).flops == 2 * 4096 * 4096 * 8 * 128


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def text_of(program) -> str:
    text = program.as_text()
    assert text
    return text


def on_mesh(*axes, shape=(2, 4)):
    mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec(*axes))


def spread(shape, *axes):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=on_mesh(*axes))


def test_five_steps_of_a_product_over_four_devices_sum_five_times():
    def layers(x, w):
        def step(x, _):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), on_mesh("a", None)), None

        return jax.lax.scan(step, x, None, length=5)[0]

    text = text_of(compiled(layers, spread((16, 64), "a", None), spread((64, 64), "b", None)))
    found = cost(text, CHIPS["TPU v5p"])
    # Each device has 8 rows and 16 of 64 columns: products of 8 x 16 x 64, summed over four.
    assert [(each.kind, each.bytes, each.count, each.group_size) for each in found.collectives] == [
        ("all-reduce", 8 * 64 * 4, 5, 4)
    ]
    assert found.flops == 5 * 2 * 8 * 16 * 64
    assert found.unknown_loops == ()
    # No cycles are estimated for a CPU.
    assert found.compute_seconds == found.flops / 459e12
    # What the compiler says of a loop counts, whatever the condition is, and the condition where it says nothing.
    assert cost(text.replace("direction=LT", "direction=EQ"), CHIPS["TPU v5p"]) == found
    assert '"known_trip_count"' in text
    silent = cost(text.replace('"known_trip_count"', '"unsaid"'), CHIPS["TPU v5p"])
    assert silent == found


def test_nested_loops_multiply():
    def inner(x, _):
        return x @ x, None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, length=3)[0], None

    text = text_of(compiled(lambda x: jax.lax.scan(outer, x, None, length=4)[0], jnp.ones((8, 8))))
    assert cost(text).flops == 12 * 2 * 8**3


def test_a_loop_by_what_is_computed_is_said_to_be_unknown():
    def function(x, n):
        return jax.lax.while_loop(lambda c: c[1] < n, lambda c: (c[0] @ c[0], c[1] + 1), (x, 0))

    found = cost(text_of(compiled(function, jnp.ones((8, 8)), jnp.asarray(3))))
    assert len(found.unknown_loops) == 1
    assert found.flops == 2 * 8**3


def test_a_loop_as_long_as_the_one_around_it_has_come_is_unknown():
    def outer(i, x):
        return jax.lax.while_loop(lambda c: c[1] < i, lambda c: (c[0] @ c[0], c[1] + 1), (x, 0))[0]

    found = cost(text_of(compiled(lambda x: jax.lax.fori_loop(0, 4, outer, x), jnp.ones((8, 8)))))
    assert len(found.unknown_loops) == 1
    assert found.flops == 4 * 2 * 8**3


def test_a_gather_of_a_spread_array():
    def function(x):
        return jax.lax.with_sharding_constraint(x * 2, on_mesh(None, None))

    (found,) = cost(text_of(compiled(function, spread((16, 64), ("a", "b"), None)))).collectives
    assert (found.kind, found.bytes, found.count, found.group_size) == ("all-gather", 16 * 64 * 4, 1, 8)


def test_flops_are_those_of_xla_where_nothing_loops():
    def function(x, w):
        return jnp.einsum("bij,bjk->bik", x, w)

    program = compiled(function, jnp.ones((3, 16, 32)), jnp.ones((3, 32, 8)))
    analysis = program.cost_analysis()
    assert analysis is not None
    assert cost(text_of(program)).flops == 2 * 3 * 16 * 32 * 8 == pytest.approx(analysis["flops"], rel=0.01)


def test_bytes_of_memory_are_near_those_of_xla():
    def function(x, y):
        return jnp.tanh(x + y) @ y, x[3:5] * 2

    program = compiled(function, jnp.ones((256, 256)), jnp.ones((256, 256)))
    analysis = program.cost_analysis()
    assert analysis is not None
    assert cost(text_of(program)).hbm_bytes == pytest.approx(analysis["bytes accessed"], rel=0.05)


def test_memory_is_the_sum_of_its_parts():
    def function(x, y):
        return x + y @ y

    program = jax.jit(function, donate_argnums=0).lower(jnp.ones((32, 32)), jnp.ones((32, 32))).compile()
    found = memory(program)
    assert (found["arguments"], found["outputs"], found["aliased"]) == (2 * 4096, 4096, 4096)
    assert found["total"] == 2 * 4096 + found["temporaries"] + found["program"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (27.50G) "
            "exceeds available HBM (15.75G).",
            (27.5 * 2**30, 15.75 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 1.50T of 95.74G hbm. Exceeded hbm capacity by 1.41T.",
            (1.5 * 2**40, 95.74 * 2**30),
        ),
        ("Ran out of memory in memory space vmem. Used 32.42M of 16.00M vmem.", None),
        ("INVALID_ARGUMENT: something else", None),
    ],
)
def test_what_was_needed_and_what_there_is_are_read_from_the_error(text, expected):
    assert used_of_limit(text) == expected


WARNING = "E0531 10:54:04 spmd_partitioner.cc:569] [SPMD] Involuntary full rematerialization. The compiler was not able"


def test_warnings_are_taken_from_the_descriptor_and_all_else_goes_through(capfd):
    with captured_warnings() as found:
        os.write(2, f"before\n{WARNING}\n".encode())
        os.write(2, b"\xff no text, no end of line")
        assert found == []
    os.write(2, b", after\n")
    assert found == [WARNING]
    assert capfd.readouterr().err == "before\n\ufffd no text, no end of line, after\n"
    assert involuntary(f"a\n{WARNING.lower()}\nb") == [WARNING.lower()]


def test_an_exception_leaves_stderr_as_it_was(capfd):
    with pytest.raises(ValueError, match="inside"), captured_warnings():
        os.write(2, b"said\n")
        raise ValueError("inside")
    os.write(2, b"still\n")
    assert capfd.readouterr().err == "said\nstill\n"


FOR_TPU = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
whole = NamedSharding(Mesh(np.array(devices), ("x",)), PartitionSpec())
x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=whole)
ten = lambda a, b: jax.lax.scan(lambda a, _: (a @ b, None), a, None, length=10)[0]
for function, path in zip((jnp.matmul, ten), sys.argv[1:]):
    open(path, "w").write(jax.jit(function, out_shardings=whole).lower(x, x).compile().as_text())
"""


@pytest.mark.slow
def test_a_product_compiled_for_a_tpu_takes_about_what_the_chip_can_do(tmp_path):
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu, the compiler for TPUs, is not installed")
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    paths = [tmp_path / "one.txt", tmp_path / "ten.txt"]
    subprocess.run([sys.executable, "-c", FOR_TPU, *paths], check=True, env=os.environ | settings, timeout=300)
    chip = CHIPS["TPU v5 lite"]
    one, ten = (cost(path.read_text(), chip) for path in paths)
    assert one.flops == 2 * 4096**3
    assert one.seconds == pytest.approx(one.flops / chip.flops_per_second, rel=0.5)
    assert one.seconds is not None
    assert ten.seconds is not None
    assert ten.unknown_loops == ()
    assert ten.flops == 10 * one.flops
    # The loop also copies what it carries.
    assert 9 < ten.seconds / one.seconds < 15
