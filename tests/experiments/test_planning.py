"""Plans for slices that are not there: which meshes are tried, and what the TPU's own compiler says of them."""

import importlib.util
import json
import math

import pytest

from limbeck.distill.config import DistilConfig
from limbeck.distill.students.config import StudentConfig
from limbeck.experiments.cli import main
from limbeck.experiments.distillation_config import TeachingConfig, TextDistillationConfig
from limbeck.experiments.planned import planned
from limbeck.experiments.planning import Estimate, candidates, check_rows, estimate, largest, rough, shapes_of, slowest
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.model.chips import chip_of
from limbeck.model.compiled import Cost
from limbeck.model.errors import UserError
from limbeck.model.topology import topology
from limbeck.train.config import FitConfig, OptimConfig

V5P, V5E, V6E = "TPU v5", "TPU v5 lite", "TPU v6 lite"
compiler = pytest.mark.usefixtures("tpu_compiler")


def text(model="8b", rows=64, length=4096, **more):
    fit = FitConfig(steps=100, batch_size=rows, length=length, optim=OptimConfig())
    more = {"vocab_size": 128_256, "max_len": 8192, "dtype": "bfloat16", **more}
    return PretrainingConfig(fit, texts=("x",), model=model, **more)


def test_every_mesh_that_is_tried_divides_devices_rows_and_heads():
    plan = planned(text())
    found = list(shapes_of(plan, 64))
    assert len(found) == len(set(found)) and (1, 64, 1) in found and (4, 2, 8) in found
    for data, fsdp, tensor in found:
        assert data * fsdp * tensor == 64 and 64 % (data * fsdp) == 0 and plan.model.num_kv_heads % tensor == 0
    assert all(tensor >= 2 for *_, tensor in shapes_of(planned(text(rows=32)), 64))
    assert not list(shapes_of(planned(text(rows=4)), 64))  # 8 key-value heads and 4 rows are 32 at most


def test_what_is_compiled_first_seems_to_fit_and_to_be_fast():
    plan_of = lambda remat: planned(text(), remat)  # noqa: E731
    chip = chip_of(V5P)
    order = candidates(plan_of, 64, chip, ("none", "dots", "full"))
    assert len(order) == 3 * len(list(shapes_of(plan_of("none"), 64)))
    guesses = [rough(plan_of(remat), shape, remat, chip) for shape, remat in order]
    over = [size > 0.9 * (chip.hbm_bytes or 0) for _, size in guesses]
    assert over == sorted(over)  # what does not fit comes last
    fitting = [seconds for (seconds, _), much in zip(guesses, over, strict=True) if not much]
    assert fitting == sorted(fitting)
    small = candidates(plan_of, 64, chip_of(V5E), ("none", "full"))
    assert small[0][1] == "full" and small[0][0][1] > 1  # 16 GiB hold no whole copy of 8 B parameters


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tries", "0"], "--tries 0, --length None: each at least 1"),
        (["--length", "64"], "--remat is of a training, and --length of a prediction job"),
        (["--no-field", "1"], "unknown field --no_field"),
    ],
)
def test_options_that_make_no_sense_are_told_before_anything_is_compiled(more, words, capsys):
    assert main(["plan", "shakespeare", "--topology", "v5e:2x4", *more]) == 2
    assert words in capsys.readouterr().err


def test_a_program_that_the_compiler_refused_fits_nowhere():
    refused = Estimate((1, 4, 1), "full", {}, {}, 10.0, 10.0, None, None, "memory: activations", (), 1.0)
    assert not refused.fits


def test_no_mesh_at_all_is_told():
    with pytest.raises(UserError, match="no mesh of 64 devices divides 4 rows and 8 key-value heads: make the batch a"):
        candidates(lambda remat: planned(text(rows=4)), 64, chip_of(V5P), ("full",))
    with pytest.raises(UserError, match="64 rows at a time cannot be spread over 48 devices of data x fsdp"):
        check_rows(planned(text()), (3, 16, 1))


def test_what_limits_is_what_takes_most():
    nothing = Cost(1.0, 0.5, 0.2, {}, {}, 0.0, 0.0, (), (), ())
    assert slowest(nothing) == "compute"
    assert slowest(nothing._replace(memory_seconds=0.6)) == "memory bandwidth"
    assert slowest(nothing._replace(waiting_seconds={"all-gather": 0.3, "all-reduce": 0.4})) == "all-reduce"
    assert slowest(nothing._replace(overlapped_seconds={"all-gather": 0.9})) == "all-gather"
    assert largest({"parameters": 5, "optimizer": 10}, 20.0) == "optimizer"
    assert largest({"parameters": 5, "optimizer": 10}, 40.0) == "activations"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v9:4x4", "name a slice of v4, v5e, v5p, v6e, such as v5p:4x4x4"),
        ("v5p:4x4", "a slice of v5p has 3 axes, such as v5p:4x4x4"),
        ("v5e", "a slice of v5e has 2 axes, such as v5e:4x4"),
        ("v5e:0x4", "a slice of v5e has 2 axes"),
    ],
)
def test_a_slice_that_cannot_be(name, words):
    with pytest.raises(UserError, match=words):
        topology(name)


def test_without_the_compiler_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'limbeck\[tpu\]'"):
        topology("v5p:4x4x4")


@compiler
def test_a_slice_that_the_compiler_does_not_know():
    with pytest.raises(UserError, match=r"the compiler knows no such slice .*; try v5e:4x8"):
        topology("v5e:3x5")


@pytest.mark.slow
@compiler
def test_a_search_finds_a_mesh_that_fits_and_says_how_to_run_it(tmp_path, capfd):
    words = ["plan", "shakespeare", "--topology", "v5e:2x2", "--tries", "2", "--out", str(tmp_path / "plan.json")]
    assert main([*words, "--fit.optim.name", "adamw", "--fit.length", "128"]) == 0
    said = capfd.readouterr().out
    assert "v5e:2x2, 4 chips (TPU v5 lite) of 15.8 GiB" in said and "fits" in said and "optimiser" in said
    first, second = json.loads((tmp_path / "plan.json").read_text())
    settings = "--fit.optim.name adamw --fit.length 128"
    assert f"limbeck run shakespeare {settings} --mesh {first['mesh']} --remat {first['remat']}\n" in said
    assert first["fits"] and 0 < first["cost"]["seconds"] <= second["cost"]["seconds"]
    assert 0 < first["mfu"] < 1 and not first["warnings"] and not first["cost"]["unknown_loops"]


@pytest.mark.slow
@compiler
def test_what_does_not_fit_is_told_with_what_takes_the_memory(capfd):
    words = ["plan", "shakespeare", "--topology", "v5e:2x2", "--mesh", "data=4", "--model", "1b", "--tuning", "full"]
    assert main([*words, "--fit.optim.name", "adamw", "--fit.batch-size", "4", "--fit.length", "128"]) == 1
    said = capfd.readouterr().out
    assert "memory: " in said and "none fits" in said


def distilled(model, rows, **how):
    distil = DistilConfig(hard_weight=0.5, **how)
    return TextDistillationConfig(text(model, rows), TeachingConfig(distil, student=StudentConfig(params=0.5)))


# Every kind of step, both sizes, every chip; all 30 of them: `python benchmarks/planning.py`.
PROGRAMS = {
    "8b full": (lambda: text("8b", 64), "v5p:4x4x4", "data=4 fsdp=16", 3),
    "70b lora": (lambda: text("70b", 64, tuning="lora"), "v6e:8x8", "fsdp=32 tensor=2", 3),
    "8b distil live": (lambda: distilled("8b", 32), "v5e:8x8", "fsdp=32 tensor=2", 4),
    "70b distil cached": (lambda: distilled("70b", 64, cache="topk"), "v5p:4x4x4", "fsdp=64", 3),
    "70b decode": (
        lambda: PredictionConfig(model="70b", batch_size=64, dtype="bfloat16"), "v6e:4x8", "data=4 tensor=8", 0
    ),
}  # fmt: skip


@pytest.mark.slow
@compiler
@pytest.mark.parametrize("name", PROGRAMS)
def test_steps_of_large_models_compile_for_every_chip(name):
    """With the kernel of attention forward, again and backward, nothing gathered to be laid out anew, and they fit."""
    config, where, mesh, kernels = PROGRAMS[name]
    plan = planned(config(), None if kernels == 0 else "full")
    found = estimate(plan, plan.model.remat, mesh.split(), topology(where))
    assert found.fits and not found.warnings and found.cost is not None
    assert len([each for each in found.cost.kernels if "splash" in each.where]) == kernels
    assert not found.cost.unknown_loops and 0 < (found.mfu or 0) < 0.8
    devices = math.prod(found.shape)
    assert found.compiled["arguments"] >= sum(
        size for part, size in found.parts.items() if part in ("parameters", "optimizer", "frozen", "cache")
    )
    if kernels:  # what the compiler counts, and what the kernels do, is the model's arithmetic and what is done again
        counted = (found.cost.flops * devices + plan.attention) / plan.flops
        assert 1.0 < counted < 1.5, counted
