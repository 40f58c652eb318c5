import argparse
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limbeck.experiments.audit_config import AuditConfig
from limbeck.experiments.cli import build_parser, main
from limbeck.experiments.config import load_config, override
from limbeck.experiments.prediction_config import PredictionConfig

EXPERIMENT = """
import time
from dataclasses import dataclass
from limbeck.experiments.sweep import axis

@dataclass(frozen=True)
class Mine:
    seed: int = 0
    seconds: float = 0.0

config = Mine()
main = "mine_main:run"

def sweep():
    return axis("seed", [7, 8])
"""

MAIN = """
import time

def run(config, rundir):
    (rundir / "seed").write_text(str(config.seed))
    print("running", flush=True)
    time.sleep(config.seconds)
    return 1 if config.seed == 13 else 0
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch) -> str:
    """An experiment in the current folder whose run writes its seed down and fails for 13."""
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    (tmp_path / "mine_main.py").write_text(MAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "mine.py"


def limbeck(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limbeck.experiments.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_help_answers_at_once_and_teaches() -> None:
    start = time.monotonic()
    done = limbeck("--help")
    assert time.monotonic() - start < 2
    assert done.returncode == 0 and done.stderr == ""
    for command in ("run", "report", "lookup", "serve", "predict", "generate"):
        assert f"limbeck {command} " in done.stdout


def test_help_and_mistakes_import_nothing_heavy() -> None:
    code = """
import contextlib, sys
from limbeck.experiments.cli import main
with contextlib.suppress(SystemExit):
    main(["--help"])
main(["run", "no_such_experiment"])
import limbeck.experiments.commands, limbeck.experiments.rundir
heavy = ["jax", "orbax", "pyarrow", "matplotlib"]
print([name for name in [*heavy, "numpy"] if name in sys.modules])
with contextlib.suppress(SystemExit):
    main(["run", "sst2", "--help"])  # a config's own modules need numpy
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "[]" in lines[:-1] and lines[-1] == "[]" and "  --tuning full" in lines


def parsers(parser: argparse.ArgumentParser, words: str = "") -> dict[str, argparse.ArgumentParser]:
    """The parser of every command by its words, `store prune` among them."""
    groups = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    inner = {f"{words} {name}".strip(): each for group in groups for name, each in group.choices.items()}
    below = [parsers(each, name) for name, each in inner.items()]
    return inner | {name: each for found in below for name, each in found.items()}


COMMANDS = parsers(build_parser())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_shows_it_and_explains_each_word_it_takes(command: str) -> None:
    assert f"  limbeck {command} " in (COMMANDS[command].epilog or "")
    unexplained = [action.dest for action in COMMANDS[command]._actions if not action.help]
    assert unexplained in ([], ["what"])  # the commands of `store` are explained one by one


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_example_of_the_help_is_a_command_line_that_parses(command: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    _, _, told = capsys.readouterr().out.partition("examples:")
    lines = [line.strip() for line in told.splitlines()]
    examples = [line.split("   ")[0] for line in lines if line.startswith("limbeck ")]
    assert examples
    for example in examples:
        args, rest = build_parser().parse_known_args(shlex.split(example)[1:])
        if args.command == "predict":
            override(PredictionConfig(), rest if rest[0].startswith("--") else rest[1:])
        elif args.command == "plan":
            override(PredictionConfig() if args.config == "my_job.py" else load_config(args.config).config, rest)
        elif args.command == "audit":
            override(AuditConfig(), list(itertools.dropwhile(lambda word: not word.startswith("--"), rest)))
        elif args.command == "run" and not args.config.endswith(".py"):
            override(load_config(args.config).config, rest)
        else:
            assert args.command == "run" or not rest


def test_the_help_of_an_experiment_lists_its_fields_and_their_values(experiment: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["run", experiment, "--help"])
    assert capsys.readouterr().out.endswith("have:\n  --seed 0\n  --seconds 0.0\n")
    with pytest.raises(SystemExit):
        main(["run", "chat", "-h"])
    lines = capsys.readouterr().out.splitlines()
    assert "  --fit.batch-size 16" in lines and "  --prompts ''" in lines
    config = load_config("chat").config
    [told] = [line.split() for line in lines if line.startswith("  --on-bad-row ")]
    assert override(config, told) == config
    assert main(["run", "chatt", "--help"]) == 2
    assert capsys.readouterr().err.startswith("limbeck: no experiment file 'chatt'; did you mean 'chat'?")


def test_a_run_takes_overrides_and_returns_its_status(experiment: str, capsys) -> None:
    assert main(["run", experiment, "--seed", "4"]) == 0
    assert Path("runs/mine/seed").read_text() == "4"
    assert Path("runs/mine/command.txt").read_text() == "limbeck run mine.py --seed 4\n"
    assert main(["run", experiment, "--workdir", "other", "--seed=13"]) == 1
    assert Path("other/seed").read_text() == "13"
    capsys.readouterr()
    assert main(["run", experiment, "--seed", "5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("limbeck: runs/mine holds a run with seed 4") and error.count("\n") == 1


def test_a_mistyped_field_stops_at_once(experiment: str, capsys) -> None:
    start = time.monotonic()
    assert main(["run", experiment, "--sead", "4"]) == 2
    assert time.monotonic() - start < 1
    assert capsys.readouterr().err.startswith("limbeck: unknown field --sead; did you mean 'seed'?")
    assert not Path("runs").exists()


def test_a_sweep_is_printed_and_run(experiment: str, capsys) -> None:
    assert main(["run", experiment, "--sweep"]) == 0
    assert capsys.readouterr().out == "0 --seed 7\n1 --seed 8\n"
    assert main(["run", experiment, "--sweep", "1", "--seconds", "0.01"]) == 0
    assert Path("runs/mine-1/seed").read_text() == "8"
    assert main(["run", experiment, "--sweep", "2"]) == 2
    assert "--sweep 2" in capsys.readouterr().err
    Path("mine.py").write_text(EXPERIMENT.replace("def sweep", "def other"))
    assert main(["run", experiment, "--sweep"]) == 2
    assert "has no sweep" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["report"], ["report", "a", "--seed", "3"], ["rum", "a"], []])
def test_wrong_words_are_the_parsers_business(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2


def test_an_interrupted_run_says_how_to_go_on(experiment: str) -> None:
    # A shell starts what it puts into the background with interrupts ignored, and that is inherited: hear them again.
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    script += "from limbeck.experiments.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "run", experiment, "--seconds", "60"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout and child.stdout.readline() == "running\n"
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=30)
    assert child.returncode == 130
    assert error == "\nlimbeck: interrupted; run the same command to go on\n"


def test_a_reader_that_goes_away_is_no_error(experiment: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "limbeck.experiments.cli", "run", experiment, "--sweep"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_report(tmp_path: Path, capsys) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"limbeck: no report in {tmp_path}")


@pytest.mark.parametrize("holds", [True, False])
def test_a_report_is_printed_and_a_failed_claim_is_its_status(tmp_path: Path, holds: bool, capsys) -> None:
    row = {"method": "lora", "metrics": {"accuracy": {"value": 0.5, "ci95": [0.4, 0.6], "n": 100}}}
    claim = {"name": "tuned_beats_base", "statement": "It does.", "holds": holds, "evidence": {}}
    (tmp_path / "report.json").write_text(json.dumps({"seed": 0, "rows": [row], "claims": [claim]}))
    assert main(["report", str(tmp_path)]) == (0 if holds else 1)
    out = capsys.readouterr().out
    assert "lora" in out and "tuned_beats_base" in out
    assert out.splitlines()[-1] == str(tmp_path / "report.html")


def test_a_missing_store(tmp_path: Path, capsys) -> None:
    assert main(["lookup", str(tmp_path / "none.db"), "lemon"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("limbeck: ") and "none.db" in error and error.count("\n") == 1


def test_a_look_up_prints_the_answer_or_fails(tmp_path: Path, capsys) -> None:
    from limbeck.inference.store import PredictionStore

    scored, generated = str(tmp_path / "scored.db"), str(tmp_path / "generated.db")
    with PredictionStore(scored, manifest={"options": '["ham", "spam"]'}) as store:
        store.put_many([("k", "win a phone", {"logprobs": [-3.0, -1.0], "lengths": [1, 1]})])
    with PredictionStore(generated) as store:
        store.put_many([("k", "لیمو", {"text": " hesperidium", "tokens": [1], "logprob": -1.0})])
    assert main(["lookup", scored, "win  a phone"]) == 0
    assert main(["lookup", generated, "لیمو"]) == 0
    assert capsys.readouterr() == ("spam\nhesperidium\n", "")
    assert main(["lookup", scored, "lose a phone"]) == 1
    assert capsys.readouterr() == ("", "not in the store\n")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A tiny model with random parameters, over bytes."""
    import jax

    from limbeck.model.config import ModelConfig
    from limbeck.model.pretrained import save_pretrained
    from limbeck.model.tokenizer import byte_tokenizer
    from limbeck.model.transformer import init

    path = tmp_path_factory.mktemp("model") / "tiny"
    config = ModelConfig(
        vocab_size=259, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, max_len=128
    )
    save_pretrained(path, config, init(config, jax.random.key(0)), byte_tokenizer())
    return str(path)


def test_generate_prints_the_same_text_for_the_same_seed(model: str, capsys) -> None:
    def text(seed: str) -> str:
        words = ["generate", model, "plum: ", "--temperature", "1", "--seed", seed, "--max-new-tokens", "24"]
        assert main(words) == 0
        return capsys.readouterr().out

    assert text("1") == text("1") != text("2")


def test_generate_refuses_what_does_not_fit(model: str, capsys) -> None:
    assert main(["generate", model, "plum: " * 30]) == 2
    error = capsys.readouterr().err
    assert error.startswith("limbeck: ") and error.count("\n") == 1


def test_describe_names_every_parameter_and_their_sum(model: str, capsys) -> None:
    from limbeck.model.params import count
    from limbeck.model.pretrained import load_pretrained

    assert main(["describe", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    params = load_pretrained(model).params
    for path, leaf in params.items():
        [line] = [line for line in lines if line.split()[:1] == [path]]
        assert " x ".join(map(str, leaf.shape)) in line and "float32" in line
    [line] = [line for line in lines if "model.layers.{}.self_attn.q_proj.weight" in line]
    assert "blocks/attn/q/kernel" in line
    assert lines[-2].split()[:2] == ["total", f"{count(params) / 1000:.3g}"]


def test_convert_writes_a_folder_that_gives_the_same_parameters(model: str, tmp_path: Path, capsys) -> None:
    from limbeck.model.params import digest
    from limbeck.model.pretrained import load_pretrained

    assert main(["convert", model, str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'new'}: llama\n"
    assert digest(load_pretrained(tmp_path / "new").params) == digest(load_pretrained(model).params)
    assert main(["convert", model, str(tmp_path / "new")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["convert", model, str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    half = load_pretrained(tmp_path / "half")
    assert half.config.dtype == "bfloat16"
    same, stored = load_pretrained(tmp_path / "new").lineage, digest(load_pretrained(model).params)
    assert [each.digest for each in same] == [stored]  # in another folder it is the same model
    assert [(each.made, each.digest) for each in half.lineage] == [
        ("converted", digest(half.params)),
        (same[0].made, stored),
    ]


def test_chat_needs_a_template_and_uses_it(model: str, tmp_path: Path, capsys) -> None:
    assert main(["generate", model, "hello", "--chat"]) == 2
    assert "has no chat template" in capsys.readouterr().err
    assert main(["convert", model, str(tmp_path / "chat")]) == 0
    (tmp_path / "chat" / "manifest.json").unlink()
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}> {% endif %}"
    (tmp_path / "chat" / "chat_template.jinja").write_text(template)
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "chat"), "hello", "--chat"]) == 0
    answer = capsys.readouterr().out
    assert main(["generate", model, "[user] hello\n> "]) == 0
    assert capsys.readouterr().out == answer
