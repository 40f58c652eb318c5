"""Programs by their shapes alone are those of the run: the same leaves, the same bytes on each device, nothing made."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from limbeck.distill.config import DistilConfig
from limbeck.distill.match_config import MatchConfig
from limbeck.distill.students.config import StudentConfig
from limbeck.experiments.cli import main
from limbeck.experiments.config import load_config
from limbeck.experiments.distillation_config import DistillationConfig, TeachingConfig, TextDistillationConfig
from limbeck.experiments.planned import planned
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.experiments.program import bytes_of, table_of
from limbeck.experiments.start import begin
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.pretrained import save_pretrained
from limbeck.model.sharding import AXES, make_mesh, over, placed
from limbeck.model.sizes import sized
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init, shapes
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.methods import METHODS, Ground, prepare
from limbeck.train.optim import make_optimizer
from limbeck.train.select import apply_selection
from limbeck.train.step import init_state

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=32, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
    max_len=64, tied_embedding=False,
)  # fmt: skip
FIT = FitConfig(steps=3, batch_size=8, length=16, optim=OptimConfig())
SIZES = ["fsdp=4", "tensor=2"]
LOOKING = ("fisher", "magnitude", "gradient", "movement", "entries")  # at numbers, of which a plan has none


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    save_pretrained(folder / "model", CONFIG, init(CONFIG, jax.random.key(0)), TOKENIZER)
    rows = [{"text": f"word {n}", "label": ("good", "bad")[n % 2]} for n in range(20)]
    about = {"kind": "classification", "input": "text", "output": "label", "options": ["bad", "good"]}
    (folder / "task.json").write_text(json.dumps(about))
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def text(folder, **more):
    return PretrainingConfig(FIT, texts=("x",), model=str(folder / "model"), **more)


def of_task(folder, **more):
    return TuningConfig(str(folder), str(folder / "model"), FIT, **more)


@pytest.mark.parametrize("tuning", [name for name in METHODS if name not in LOOKING])
def test_a_plan_is_of_the_leaves_and_bytes_that_a_run_has(tuning, folder):
    plan = planned(text(folder, tuning=tuning))
    with over(SIZES):
        start = begin(str(folder / "model"), folder, [], vocab_size=0, max_len=0)
        encode = start.tokenizer.encode
        made = prepare(tuning, Ground(start.config, start.params, text(folder).method, 0, None, encode), FIT.optim)
        trainable, frozen = apply_selection(made.selection, placed(start.config, made.params))
        state = init_state(make_optimizer(made.optim, FIT.steps), trainable)
    there = {**trainable, **frozen}
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in {**plan.trainable, **plan.frozen}.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in there.items()
    }
    assert plan.trainable.keys() == trainable.keys()

    def here(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    found = bytes_of(plan, make_mesh(SIZES))
    assert found["parameters"] == found["gradients"] == here(state.trainable)
    assert (found["optimizer"], found["frozen"]) == (here(state.opt), here(frozen))
    rows = {row.path: row for row in table_of(plan, make_mesh(SIZES))}
    for path, leaf in there.items():
        assert rows[path].nbytes == leaf.addressable_shards[0].data.nbytes
        assert rows[path].trains == (path in trainable)


@pytest.mark.parametrize("tuning", LOOKING[:-1])
def test_a_tuning_that_looks_at_numbers_is_refused(tuning, folder):
    with pytest.raises(UserError, match="looks at"):
        planned(text(folder, tuning=tuning))


def test_a_size_is_planned_without_a_byte_of_it():
    config = PretrainingConfig(FIT, texts=("x",), model="70b", vocab_size=128_256, max_len=4096)
    plan = planned(config)
    count = sum(math.prod(leaf.shape) for leaf in plan.trainable.values())
    assert count == 70_553_706_496  # Llama 3 70B's, as its model card has them
    mesh = AbstractMesh((1, 256, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    cut = sum(math.prod(leaf.shape) for path, leaf in plan.trainable.items() if "norm" not in path)
    whole = count - cut
    assert bytes_of(plan, mesh)["parameters"] == 4 * (cut // 256 + whole)
    assert bytes_of(plan, mesh)["optimizer"] == 8 * (cut // 256 + whole) + 8  # two moments and two counters


def test_of_a_folder_its_config_is_enough(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "model" / "config.json").read_text())
    plan = planned(text(folder, dtype="bfloat16").__class__(FIT, texts=("x",), model=str(tmp_path)))
    assert {path: leaf.shape for path, leaf in plan.trainable.items()} == {
        path: leaf.shape for path, leaf in shapes(CONFIG).items()
    }
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        planned(PretrainingConfig(FIT, texts=("x",), model=str(tmp_path)))


def test_a_head_is_that_of_the_task(folder):
    plan = planned(of_task(folder, tuning="lora"))
    assert plan.model.labels == ("bad", "good") and plan.trainable["score/kernel"].shape == (32, 2)
    assert planned(of_task(folder, head=False)).model.labels == ()


@pytest.mark.parametrize(
    ("teaching", "beside"),
    [
        (TeachingConfig(student=StudentConfig(params=0.5)), "float32"),
        (TeachingConfig(DistilConfig(teacher_base="int8"), student=StudentConfig(params=0.5)), "int8"),
        (TeachingConfig(DistilConfig(cache="topk"), student=StudentConfig(params=0.5), kept=4), None),
        (TeachingConfig(match=MatchConfig(hidden=1.0), student=StudentConfig(width=16)), "float32"),
    ],
    ids=["live", "live in int8", "cached", "matched"],
)
def test_a_student_beside_its_teacher(teaching, beside, folder):
    plan = planned(TextDistillationConfig(text(folder), teaching))
    theirs = {path: leaf for path, leaf in plan.frozen.items() if path.startswith("teacher/")}
    assert bool(theirs) == (beside is not None)
    assert beside is None or beside in {str(leaf.dtype) for leaf in theirs.values()}
    assert not any(path.startswith("teacher/") for path in plan.trainable)
    assert any(path.startswith("matcher/") for path in plan.trainable) == (teaching.match.hidden > 0)
    lowered = plan.lower(make_mesh(SIZES))
    assert ("tensor<8x16x4xui16>" in lowered.as_text()) == (beside is None)
    assert bytes_of(plan, make_mesh(SIZES))["frozen"] == sum(
        row.nbytes for row in table_of(plan, make_mesh(SIZES)) if not row.trains
    )


def test_a_cached_teacher_s_vocabulary_is_that_of_the_plan(folder, tmp_path):
    """A student with more ids is compared over the teacher's, as many as each."""
    wide = dataclasses.replace(CONFIG, vocab_size=CONFIG.vocab_size + 20)
    save_pretrained(tmp_path, wide, init(wide, jax.random.key(0)))
    student = StudentConfig(start=str(tmp_path))
    for kept in (DistilConfig(cache="topk"), DistilConfig()):
        plan = planned(TextDistillationConfig(text(folder), TeachingConfig(kept, student=student)))
        assert f"x{CONFIG.vocab_size}xf32>" in plan.lower(make_mesh(SIZES)).as_text()


def test_a_task_is_distilled_with_its_head(folder):
    with pytest.raises(UserError):  # a teacher that has none is told in a run; a plan gives it one
        planned(DistillationConfig(of_task(folder), TeachingConfig(student=StudentConfig(params=0.5), shots=2)))
    plan = planned(DistillationConfig(of_task(folder), TeachingConfig(student=StudentConfig(params=0.5))))
    assert plan.model.labels == ("bad", "good") and plan.frozen["teacher/score/kernel"].shape == (32, 2)


def test_writing_is_planned_with_its_cache(folder):
    job = PredictionConfig(model=str(folder / "model"), batch_size=8)
    plan, coded = planned(job, length=64), planned(dataclasses.replace(job, coded_cache=True), length=64)
    mesh = make_mesh(SIZES)
    cache = 2 * CONFIG.depth * 8 * CONFIG.num_kv_heads * 64 * CONFIG.head_dim * 4
    assert bytes_of(plan, mesh)["cache"] == cache // 8 + 2 * 4 * 8 // 4  # and two lengths of each row
    assert bytes_of(coded, mesh)["cache"] < 0.4 * bytes_of(plan, mesh)["cache"]
    assert plan.lower(mesh).compile() is not None
    assert planned(dataclasses.replace(job, quantise="int8")).frozen["blocks/mlp/up/kernel_int8"].dtype == np.int8


def test_remat_and_accumulation_are_those_of_the_plan(folder):
    config = text(folder, remat="dots")
    assert planned(config).model.remat == "dots" and planned(config, "full").model.remat == "full"
    halved = planned(dataclasses.replace(config, fit=dataclasses.replace(FIT, accumulate=2)))
    assert (planned(config).rows, halved.rows) == (8, 4)


def test_what_is_kept_of_the_best_is_counted(folder):
    best = dataclasses.replace(FIT, keep="best")
    found = bytes_of(planned(dataclasses.replace(text(folder), fit=best)), make_mesh(SIZES))
    assert found["best"] == found["parameters"] and bytes_of(planned(text(folder)), make_mesh(SIZES))["best"] == 0


def test_an_experiment_of_several_trainings_is_refused():
    with pytest.raises(UserError, match="a plan is of one training or of a prediction job, which LessonConfig is not"):
        planned(load_config("quickstart").config)


def test_a_dry_run_prints_what_lies_where_and_makes_nothing(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["run", "shakespeare", "--model", str(folder / "model"), "--tuning", "lora", "--mesh", *SIZES, "--dry-run"]
    assert main([*words, "--fit.length", "32"]) == 0
    said = capsys.readouterr().out
    assert "of which" in said and not list(tmp_path.iterdir())
    lines = {line.split()[0]: line for line in said.splitlines() if "/" in line}
    assert "· x fsdp x tensor" in lines["blocks/mlp/up/kernel"] and "frozen" in lines["blocks/mlp/up/kernel"]
    assert "trains" in lines["blocks/mlp/up/lora_b"] and "2.05 kB" in lines["blocks/mlp/up/lora_b"]
    assert all(word in said for word in ("optimiser", "gradients", "activations", "together"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--mesh", "fsdp=3", "--fit.batch-size", "8"], "8 rows at a time cannot be spread over 3 devices"),
        (["--mesh", "fsdp=16"], "mesh fsdp=16 is of 16 devices, and there are 8"),
        (["--mesh", "rows=2"], "axis of the mesh 'rows'"),
    ],
)
def test_a_dry_run_of_a_mesh_that_cannot_be(more, words, folder, capsys):
    assert main(["run", "shakespeare", "--model", str(folder / "model"), "--dry-run", *more]) == 2
    assert words in capsys.readouterr().err


def test_llama_by_name_has_llamas_sizes():
    for name, count in (("8b", 8_030_261_248), ("70b", 70_553_706_496)):
        found = shapes(sized(name, 128_256, 8192))
        assert sum(math.prod(leaf.shape) for leaf in found.values()) == count
