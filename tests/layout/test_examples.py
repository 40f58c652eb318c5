"""The examples of the documents: Python that names what is there, and commands whose every field is one."""

import ast
import builtins
import importlib
import inspect
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.experiments.audit_config import AuditConfig
from limbeck.experiments.cli import build_parser
from limbeck.experiments.config import built_in, load_config, override
from limbeck.experiments.prediction_config import PredictionConfig

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{document.name}-{number}")
    for document in DOCUMENTS
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
]


def faults(code: str) -> Iterator[str]:
    """What would stop an example: a name that is nowhere, a call of ours that does not take its arguments."""
    tree = ast.parse(code)
    known: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            known |= {each.asname or each.name: getattr(module, each.name, None) for each in node.names}
        elif isinstance(node, ast.Import):
            known |= {each.asname or each.name: importlib.import_module(each.name) for each in node.names}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    yield from (f"{name} is imported and not there" for name, value in known.items() if value is None)
    yield from (f"{name} is imported and not used" for name in known.keys() - read)
    yield from (f"{name} is nowhere" for name in read - made - known.keys())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for name, call in ((call.func.id, call) for call in calls if isinstance(call.func, ast.Name)):
        if callable(called := known.get(name)):
            try:
                inspect.signature(called).bind(*call.args, **{each.arg: None for each in call.keywords if each.arg})
            except TypeError as error:
                yield f"{name}: {error}"


def commands(text: str) -> list[list[str]]:
    """The words after `limbeck` of every command: of a line of its own, or of `limbeck run ...` anywhere.

    N stands for any number.
    """
    whole = text.replace("\\\n", " ")
    lines = re.findall(r"^ *(?:\$ |!)?limbeck (.+)$", whole, re.MULTILINE)
    lines += re.findall(r"`limbeck (run [^`]+)`", whole.replace("\n", " "))
    # Of a command that is sent to other machines in quotes the last line ends in one that has no beginning here.
    found = [shlex.split(line.rstrip("'") if line.count("'") % 2 else line, comments=True) for line in lines]
    return [["0" if word == "N" else word for word in words] for words in found if "--help" not in words]


@pytest.mark.parametrize("code", BLOCKS)
def test_the_python_of_the_documents_would_run(code: str) -> None:
    assert list(faults(code)) == []


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("from limbeck.prompting.predict import predict\npredict(1, 2, 3, shots=4)", "predict: got an unexpected"),
        ("from limbeck.prompting.predict import predict\npredict(1, 2)", "predict: missing a required argument"),
        ("from limbeck.prompting.predict import predicted\npredicted()", "predicted is imported and not there"),
        ("from limbeck.model.sharding import over\nwith over([]):\n    load('a')", "load is nowhere"),
        ("import jax\nprint(1)", "jax is imported and not used"),
    ],
)
def test_an_example_that_cannot_run_is_seen(code: str, told: str) -> None:
    [found] = faults(code)
    assert found.startswith(told)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_field_in_a_command_of_the_documents_is_one(document: Path) -> None:
    for words in commands(document.read_text(encoding="utf-8")):
        args, rest = build_parser().parse_known_args(words)
        fields = list(itertools.dropwhile(lambda word: not word.startswith("--"), rest))
        if args.command in ("run", "plan") and args.config in built_in():
            override(load_config(args.config).config, fields)
        elif args.command in ("predict", "audit"):
            override({"predict": PredictionConfig(), "audit": AuditConfig()}[args.command], fields)
        elif args.command not in ("run", "plan"):
            assert not rest, words


def test_the_commands_of_a_document_are_found() -> None:
    text = "See `limbeck run\nsst2 --sweep N`.\n\n    limbeck describe 'a b'   # it\n"
    text += "    !limbeck run chat \\\n      --seed 2'\n"
    assert commands(text) == [["describe", "a b"], ["run", "chat", "--seed", "2"], ["run", "sst2", "--sweep", "0"]]
