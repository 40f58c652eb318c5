import pkgutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from limbeck.experiments.config import CONFIGS, apply_point, flatten, load_config, override
from limbeck.model.errors import UserError

BUILT_IN = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")


@dataclass(frozen=True)
class Inner:
    width: int = 8
    kind: Literal["rms", "layer"] = "rms"

    def __post_init__(self) -> None:
        if self.width % 2:
            raise UserError(f"width {self.width} is odd")


@dataclass(frozen=True)
class Config:
    seed: int = 0
    rate: float = 0.5
    task: str = "world"
    scan_layers: bool = True
    window: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    model: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("", {}),
        ("--seed 3", {"seed": 3}),
        ("--seed=3 --seed 4", {"seed": 4}),
        ("--rate 1e-3", {"rate": 1e-3}),
        ("--rate -1e-3", {"rate": -1e-3}),
        ("--task=a=b", {"task": "a=b"}),
        ("--task وظیفه", {"task": "وظیفه"}),
        ("--scan-layers False", {"scan_layers": False}),
        ("--scan_layers True", {}),
        ("--window 4", {"window": 4}),
        ("--window None", {}),
        ("--sizes 3 4 5", {"sizes": (3, 4, 5)}),
        ("--sizes=3", {"sizes": (3,)}),
        ("--model.width 16 --seed 1", {"model.width": 16, "seed": 1}),
        ("--model.kind layer", {"model.kind": "layer"}),
        ("--width 16 --kind=layer", {"model.width": 16, "model.kind": "layer"}),
    ],
)
def test_override_changes_the_named_fields_alone(words: str, changed: dict) -> None:
    before = Config()
    assert flatten(override(before, words.split())) == flatten(before) | changed
    assert before == Config()


def test_override_starts_from_the_given_config() -> None:
    assert override(Config(seed=7, model=Inner(4)), ["--rate", "1"]) == Config(
        seed=7, rate=1.0, model=Inner(4)
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sead 3", "unknown field --sead; did you mean 'seed'?; the fields are seed, rate,"),
        ("--model.widht 3", "did you mean 'model.width'?"),
        ("--model 3", "unknown field --model"),
        ("--seed x", "--seed x: expected int"),
        ("--seed 1.5", "--seed 1.5: expected int"),
        ("--seed", "--seed : expected int"),
        ("--seed 1 2", "--seed 1 2: expected int"),
        ("--rate 1 --seed x --task y", "--seed x: expected int"),
        ("--scan-layers maybe", "--scan_layers maybe: expected True or False"),
        ("--window x", "--window x: expected int | None"),
        ("--model.kind rsm", "--model.kind rsm: expected one of rms, layer; did you mean 'rms'?"),
        ("seed 3", "unexpected 'seed'; a field is set by its name"),
        ("--model.width 3", "width 3 is odd"),
    ],
)
def test_a_mistaken_override_is_one_line_that_helps(words: str, message: str, capfd) -> None:
    with pytest.raises(UserError) as caught:
        override(Config(), words.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_end_of_a_name_means_the_field_that_it_alone_ends() -> None:
    @dataclass(frozen=True)
    class Pair:
        width: int = 1
        first: Inner = Inner()
        second: Inner = Inner()

    assert override(Pair(), ["--width", "3"]).width == 3  # a field of its own goes before one within
    with pytest.raises(UserError, match="--kind may be any of --first.kind, --second.kind: say which"):
        override(Pair(), ["--kind", "layer"])
    with pytest.raises(UserError, match="unknown field --idth"):
        override(Pair(), ["--idth", "4"])


def test_a_part_that_may_be_none_has_its_fields_where_there_is_one() -> None:
    @dataclass(frozen=True)
    class Optional:
        width: int = 1
        part: Inner | None = Inner()

    assert override(Optional(), ["--part.width", "4"]) == Optional(part=Inner(4))
    assert override(Optional(part=None), ["--width", "3"]) == Optional(3, None)
    with pytest.raises(UserError, match="--part.width x: expected int"):
        override(Optional(), ["--part.width", "x"])


def test_fields_that_constrain_each_other_are_set_together() -> None:
    @dataclass(frozen=True)
    class Pair:
        low: int = 0
        high: int = 1

        def __post_init__(self) -> None:
            if self.low >= self.high:
                raise UserError("low is not below high")

    assert override(Pair(), ["--low", "5", "--high", "6"]) == Pair(5, 6)
    assert apply_point(Pair(), {"low": 5, "high": 6}) == Pair(5, 6)


def test_a_point_changes_the_named_fields_alone() -> None:
    point = {"seed": 2, "model.width": 4, "model.kind": "layer"}
    assert apply_point(Config(rate=0.25), point) == Config(2, 0.25, model=Inner(4, "layer"))


def test_a_point_with_an_unknown_field() -> None:
    with pytest.raises(
        UserError, match=r"unknown field 'model.widht' in sweep\(\); did you mean 'model.width'"
    ):
        apply_point(Config(), {"model.widht": 4})


FILE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    seed: int = 0

config = Mine(5)
main = "limbeck.experiments.lesson:run"
"""


def test_a_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "my experiment.py"
    path.write_text(FILE)
    loaded = load_config(str(path))
    assert (loaded.main, loaded.sweep, loaded.path) == ("limbeck.experiments.lesson:run", (), path)
    assert loaded.config.seed == 5
    assert override(loaded.config, ["--seed", "6"]).seed == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("main = 'a:b'", "no `config`"),
        ("config = {}\nmain = 'a:b'", "no `config`"),
        (FILE.replace("Mine(5)", "Mine"), "no `config`"),
        (FILE.replace("main", "other"), "no `main`"),
        (FILE.replace(":run", ""), "no `main`"),
        (FILE + "def", "line 10: "),
    ],
)
def test_a_file_that_is_no_experiment(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(path))


def test_no_such_file() -> None:
    with pytest.raises(UserError, match="no experiment file 'quickstrat'.*built-in names"):
        load_config("quickstrat")


def test_a_file_that_is_not_python(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(FILE)
    with pytest.raises(UserError, match=r"must end in \.py"):
        load_config(str(tmp_path / "mine.txt"))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_config_and_sweep_point_builds(name: str) -> None:
    loaded = load_config(name)
    assert not {"workdir", "sweep"} & flatten(loaded.config).keys(), "the command line has its own of these"
    assert callable(pkgutil.resolve_name(loaded.main))
    for index, point in enumerate(loaded.sweep):
        apply_point(loaded.config, point)
        assert point not in loaded.sweep[:index], "a point that is there twice would run twice"


def test_configs_load_without_jax() -> None:
    code = f"""
import sys
from limbeck.experiments.config import load_config
for name in {BUILT_IN}:
    load_config(name)
print([name for name in ("jax", "orbax", "pyarrow", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
