"""Pieces of compiled programs as text, cut down to what is read of them."""

from limbeck.model.chips import Chip

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


def entry(lines, before=""):
    start = "ENTRY %main (p: f32[8,16]) -> f32[8,16] {\n  %p = f32[8,16]{1,0} parameter(0)"
    return f"{HEAD}\n{before}\n{start}\n{lines}\n}}\n"


TWICE = """%double (q: f32[8,16]) -> f32[8,16] {
  %q = f32[8,16]{1,0} parameter(0)
  ROOT %d = f32[8,16]{1,0} add(%q, %q)
}
"""
WORK = f"  %w = f32[8,16]{{1,0}} fusion(%p), kind=kLoop, calls=%double, {cycles(300_000)}\n"
