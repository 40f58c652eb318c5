"""Costs read from compiled programs are those worked out by hand, and those that XLA's own analysis has."""

import os

import jax
import jax.numpy as jnp
import pytest
from hlo_texts import CHIP, TWICE, WORK, entry
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from limbeck.model.chips import CHIPS
from limbeck.model.compiled import captured_warnings, cost, involuntary, memory, uncached, used_of_limit
from limbeck.model.sharding import make_mesh
from limbeck.model.topology import topology


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


@pytest.fixture
def cache(tmp_path):
    """The folder of a compilation cache that nothing else uses."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    reset_cache()


def test_what_is_uncached_is_neither_kept_nor_read_and_the_cache_works_again_after_it(cache):
    def files():
        return {path.name for path in cache.iterdir() if path.name.endswith("-cache")}

    compiled(lambda x: x * 2, 2.0)
    [before] = files()
    with uncached():
        compiled(lambda x: x * 3 + 1, 2.0)
    assert files() == {before}
    with pytest.raises(ValueError, match="inside"), uncached():
        raise ValueError("inside")
    compiled(lambda x: x * 3 + 1, 2.0)
    assert len(files()) == 2
    for path in cache.iterdir():
        path.write_bytes(b"not a program")  # whoever read it would warn, which fails a test
    with captured_warnings():
        compiled(lambda x: x * 3 + 1, 2.0)


@pytest.mark.slow
@pytest.mark.usefixtures("tpu_compiler")
def test_a_product_compiled_for_a_tpu_takes_about_what_the_chip_can_do():
    whole = NamedSharding(make_mesh(["data=8"], topology("v5e:2x4")), PartitionSpec())
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=whole)
    chip = CHIPS["TPU v5 lite"]

    def ten_products(a, b):
        return jax.lax.scan(lambda a, _: (a @ b, None), a, None, length=10)[0]

    programs = (jax.jit(function, out_shardings=whole) for function in (jnp.matmul, ten_products))
    with uncached():
        one, ten = (cost(text_of(program.lower(x, x).compile()), chip) for program in programs)
    assert one.flops == 2 * 4096**3
    assert one.seconds == pytest.approx(one.flops / chip.flops_per_second, rel=0.5)
    assert one.seconds is not None
    assert ten.seconds is not None
    assert ten.unknown_loops == ()
    assert ten.flops == 10 * one.flops
    # The loop also copies what it carries.
    assert 9 < ten.seconds / one.seconds < 15
