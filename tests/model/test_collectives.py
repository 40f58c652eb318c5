"""What devices say to each other in a program, by its text: kinds, bytes, groups, and what hides it."""

import pytest
from hlo_texts import CHIP, TWICE, WORK, cycles, entry, loop

from limbeck.model.chips import Chip
from limbeck.model.collectives import Collective, link_seconds
from limbeck.model.compiled import cost

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


START = (
    "  %s = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), "
    "source_target_pairs={{0,1},{1,0}}\n"
)
DONE = "  %e = f32[8,16]{1,0} collective-permute-done(%s)\n"


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
