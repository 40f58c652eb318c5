"""An experiment file, and how its fields are changed from the command line or by a point of a sweep.

An experiment is one short Python file that says

    config = Quickstart()                        # an instance of a frozen dataclass; nested ones are fine
    main = "limbeck.experiments.lesson:run"      # run(config, rundir) -> exit status; imported when it runs
    def sweep(): return axis("seed", range(3))   # optional: points, dicts from dotted name to value

Nothing here imports jax, so that a mistyped field stops at once.
"""

import contextlib
import dataclasses
import importlib.util
import io
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.model.errors import UserError, nearest

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class LoadedConfig:
    """What an experiment file defines: the config, its entry point by name, the points of its sweep."""

    config: Any
    main: str
    sweep: tuple[dict[str, Any], ...]
    path: Path

    def run(self, config: Any, rundir: Path) -> int:
        """Imports the entry point and runs it; the exit status."""
        entry: Callable[[Any, Path], int] = pkgutil.resolve_name(self.main)
        return entry(config, rundir)


def built_in() -> list[str]:
    """The names of the experiment files that come with the package."""
    return sorted(file.stem for file in CONFIGS.glob("*.py") if file.stem != "__init__")


def load_config(path_or_name: str) -> LoadedConfig:
    """Reads an experiment file by its path, or by its bare name if it is one of the built-in ones.

    Raises UserError if there is no such file, or if it does not define what an experiment defines.
    """
    path = _find(path_or_name)
    module = _import(path)
    config = getattr(module, "config", None)
    main = getattr(module, "main", None)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise UserError(f"{path}: no `config`; define it as an instance of a frozen dataclass")
    if not isinstance(main, str) or ":" not in main:
        raise UserError(f'{path}: no `main`; name what runs, as in main = "limbeck.experiments.lesson:run"')
    sweep = tuple(getattr(module, "sweep", tuple)())
    return LoadedConfig(config, main, sweep, path)


def override(config: Any, argv: Sequence[str]) -> Any:
    """`config` with the fields that command-line words such as `--model.width 64 --seed=3` name.

    Hyphens and underscores are the same in a name; a truth value is written out (`True` or `False`), a tuple
    as several words. The beginning of a name may be left out where its end is that of one field: `--task` for
    `--tuning.task`.
    Raises UserError for an unknown field, and for a value that is not of its field's type.
    """
    hints = _hints(config)
    settings = {_whole(name, hints): values for name, values in _settings(argv).items()}
    words = [word for name, values in settings.items() for word in (f"--{name}", *values)]
    try:
        return _parse(config, words)
    except SystemExit:
        name = next(name for name in settings if not _parses(config, [f"--{name}", *settings[name]]))
        expected, hint = _expected(hints[name], settings[name])
        raise UserError(f"--{name} {' '.join(settings[name])}: expected {expected}{hint}") from None


def apply_point(config: Any, point: Mapping[str, Any]) -> Any:
    """`config` with the fields of one point of a sweep, by dotted name.

    Raises UserError for an unknown field.
    """
    names = _hints(config)
    for name in point:
        if name not in names:
            raise UserError(
                f"unknown field {name!r} in sweep(){nearest(name, names)}; the fields are {', '.join(names)}"
            )
    here = {name: value for name, value in point.items() if "." not in name}
    below: dict[str, dict[str, Any]] = {}
    for name, value in point.items():
        if "." in name:
            first, rest = name.split(".", 1)
            below.setdefault(first, {})[rest] = value
    nested = {first: apply_point(getattr(config, first), rest) for first, rest in below.items()}
    return dataclasses.replace(config, **here, **nested)


def flatten(config: Any) -> dict[str, Any]:
    """Dotted field name -> value, in the order of definition; nested dataclasses are opened."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{name}": inner for name, inner in flatten(value).items()}
        else:
            flat[field.name] = value
    return flat


def _find(path_or_name: str) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path.resolve()
    names = built_in()
    if path_or_name in names:
        return CONFIGS / f"{path_or_name}.py"
    raise UserError(
        f"no experiment file {path_or_name!r}{nearest(path_or_name, names)}; "
        f"give the path of one, or one of the built-in names: {', '.join(names)}"
    )


def _import(path: Path) -> types.ModuleType:
    name = f"limbeck_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not an experiment file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their own module there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path} line {error.lineno}: {error.msg}") from error
    return module


def _hints(config: Any) -> dict[str, Any]:
    """Dotted field name -> type annotation, for the fields that hold a value of their own."""
    hints = typing.get_type_hints(type(config))
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{name}": hint for name, hint in _hints(value).items()}
        else:
            flat[field.name] = hints[field.name]
    return flat


def _whole(name: str, fields: Collection[str]) -> str:
    """The field that is called `name`, or whose name alone ends in it."""
    meant = [field for field in fields if field == name] or [field for field in fields if field.endswith(f".{name}")]
    if len(meant) > 1:
        raise UserError(f"--{name} may be any of {', '.join(f'--{field}' for field in meant)}: say which")
    if not meant:
        raise UserError(
            f"unknown field --{name}{nearest(name, fields)}; the fields are {', '.join(_beside(name, fields))}"
        )
    return meant[0]


def _beside(name: str, fields: Iterable[str]) -> list[str]:
    """The fields of the innermost group that `name` rightly names, a group among them once: not all two hundred."""
    fields = list(fields)
    group = name
    while group and not any(field.startswith(f"{group}.") for field in fields):
        group = group.rpartition(".")[0]
    prefix = f"{group}." if group else ""
    return list(dict.fromkeys(prefix + f[len(prefix) :].split(".")[0] for f in fields if f.startswith(prefix)))


def _settings(argv: Sequence[str]) -> dict[str, list[str]]:
    """`--a.b x y --c=z` as {"a.b": ["x", "y"], "c": ["z"]}; of two settings of a name the later holds."""
    settings: dict[str, list[str]] = {}
    values: list[str] | None = None
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values = settings[name.replace("-", "_")] = [value] if equals else []
        elif values is None:
            raise UserError(f"unexpected {word!r}; a field is set by its name: --some.field {word}")
        else:
            values.append(word)
    return settings


def _parse(config: Any, words: list[str]) -> Any:
    import tyro  # a quarter of a second that help need not wait for

    # What tyro prints is a box of several lines; its exit alone says that a word is wrong.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        # Without subcommands a part that may be None has its fields where there is one.
        flags = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)
        return tyro.cli(type(config), default=config, args=words, config=flags)


def _parses(config: Any, words: list[str]) -> bool:
    try:
        _parse(config, words)
    except SystemExit:
        return False
    return True


def _expected(hint: Any, values: list[str]) -> tuple[str, str]:
    """What a field takes, in words, and the nearest legal value if there is a list of them."""
    if typing.get_origin(hint) is typing.Literal:
        legal = [str(choice) for choice in typing.get_args(hint)]
        return f"one of {', '.join(legal)}", nearest(" ".join(values), legal)
    if hint is bool:
        return "True or False", ""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint), ""
