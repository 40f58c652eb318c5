"""The house itself: what is packaged, what is linked, which way imports go, what the documents promise."""

import configparser
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("model", "tasks", "inference", "train", "distill", "prompting", "evaluation", "experiments")


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def listed(section: str, key: str) -> list[str]:
    return setup()[section][key].split("\n")[1:]


def packages_on_disk() -> set[str]:
    files = (file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
    return {".".join(("limbeck", *file.parent.relative_to(ROOT).parts)) for file in files}


def test_every_room_is_known_here() -> None:
    rooms = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert rooms == set(ROOMS)


def test_every_package_is_in_setup_cfg() -> None:
    """A forgotten one works when installed with -e, and is missing from the wheel."""
    assert sorted(listed("options", "packages")) == sorted(packages_on_disk())
    folders = [line.split(" = ") for line in listed("options", "package_dir")]
    assert {name: folder for name, folder in folders} == {
        name: name.removeprefix("limbeck.").replace(".", "/") for name in packages_on_disk()
    }


def test_every_package_is_regular() -> None:
    for name in packages_on_disk():
        folder = ROOT / name.removeprefix("limbeck.").replace(".", "/")
        assert (folder / "__init__.py").is_file(), f"{folder} has no __init__.py"


def test_there_is_no_real_package_beside_the_mapping() -> None:
    assert not (ROOT / "limbeck").exists()
    assert importlib.import_module("limbeck").__file__ is None


def test_every_data_file_is_in_setup_cfg() -> None:
    """What lies beside the code and is not listed is missing from the wheel."""
    data = setup()["options.package_data"]
    packaged = {
        file
        for name in packages_on_disk()
        for pattern in data.get(name, "").split(", ")
        if pattern
        for file in (ROOT / name.removeprefix("limbeck.").replace(".", "/")).glob(pattern)
    }
    lying = {file for room in ROOMS for file in (ROOT / room).rglob("[!.]*") if file.is_file()}
    code = {file for file in lying if file.suffix == ".py" or "__pycache__" in file.parts}
    assert lying - code - packaged == set()


def test_every_room_is_linked_for_the_type_checker() -> None:
    links = {link.name: link.readlink().as_posix() for link in (ROOT / "typings" / "limbeck").iterdir()}
    assert links == {room: f"../../{room}" for room in ROOMS}


def test_every_room_has_a_rule_in_the_checkers() -> None:
    assert sorted(listed("importlinter", "root_packages")) == sorted(f"limbeck.{room}" for room in ROOMS)
    layers = re.findall(r"limbeck\.(\w+)", setup()["importlinter:contract:direction"]["layers"])
    assert sorted(layers) == sorted(ROOMS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert project["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"].keys() == set(ROOMS)
    assert sorted(project["pyright"]["include"]) == sorted((*ROOMS, "tests"))


@pytest.mark.parametrize(
    ("importer", "imported", "kept"),
    [
        ("model", "tasks", False),
        ("train", "prompting", False),
        ("prompting", "train", False),
        ("inference", "experiments", False),
        ("distill", "train", True),
    ],
)
def test_an_import_in_the_wrong_direction_is_seen(
    tmp_path: Path, importer: str, imported: str, kept: bool
) -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the [lint] extra")
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    for room in ROOMS:
        (tmp_path / "limbeck" / room).mkdir(parents=True)
        (tmp_path / "limbeck" / room / "__init__.py").write_text("")
    (tmp_path / "limbeck" / importer / "new.py").write_text(f"import limbeck.{imported}")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    done = subprocess.run([*command, "--no-logo", "--no-cache"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == kept, done.stdout + done.stderr
    if not kept:
        assert f"limbeck.{importer} is not allowed to import limbeck.{imported}" in done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_it_is(room: str) -> None:
    assert importlib.import_module(f"limbeck.{room}").__doc__
    assert f"`{room}/`" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_what_the_documents_name_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)\b(?=`|\s*(?:#|$))", text, re.MULTILINE)) <= targets
    for path in re.findall(r"`((?:[\w.]+/)+[\w.]+\.\w+)`", text):
        assert path.startswith("runs/") or (ROOT / path).exists(), f"{document} names {path}"


def test_the_default_run_and_the_full_one() -> None:
    """A bare `pytest` is quick; `make test` and so CI leave out nothing but the benchmarks."""
    assert '-m "not slow and not bench"' in setup()["tool:pytest"]["addopts"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert 'pytest -m "not bench"' in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
