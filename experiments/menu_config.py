"""What a comparison of ways of tuning reads from an experiment file; jax-free, so that a mistake stops at once."""

import dataclasses
from typing import Any

from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.errors import UserError


@dataclasses.dataclass(frozen=True)
class MenuConfig:
    """One task, tuned in several ways from one start."""

    tuning: TuningConfig  # what all of them have in common; its own way is not looked at
    methods: tuple[str, ...]  # names of ways of tuning, or patterns; the first is what the others are compared with
    settings: tuple[tuple[str, dict[str, Any]], ...] = ()  # (method, fields of `tuning.method` that are its own)

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise UserError(f"methods {list(self.methods)}: name one or more, each once")
        for name, fields in self.settings:
            known = {field.name for field in dataclasses.fields(self.tuning.method)}
            if unknown := fields.keys() - known:
                raise UserError(f"settings of {name}: no field {min(unknown)!r}; there are {', '.join(sorted(known))}")

    def of(self, method: str) -> TuningConfig:
        """The configuration of one way of tuning."""
        own = dict(self.settings).get(method, {})
        return dataclasses.replace(
            self.tuning, tuning=method, method=dataclasses.replace(self.tuning.method, **own)
        )
