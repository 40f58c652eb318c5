"""What a comparison of ways of tuning reads from an experiment file; jax-free, so that a mistake stops at once."""

import dataclasses
from typing import Any

from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.errors import UserError


@dataclasses.dataclass(frozen=True)
class MenuConfig:
    """One task, tuned in several ways from one start, each at the best of a few learning rates."""

    tuning: TuningConfig  # what all of them have in common; its own way is not looked at
    methods: tuple[str, ...]  # ways of tuning or patterns, or names that `settings` gives to some; full tuning first
    settings: tuple[tuple[str, dict[str, Any]], ...] = ()  # (name, fields of `tuning.method`, and `tuning`, its own)
    rates: tuple[float, ...] = (1.0,)  # factors on each way's learning rate; the validation split chooses among them

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise UserError(f"methods {list(self.methods)}: name one or more, each once")
        if not self.rates or len(set(self.rates)) < len(self.rates) or min(self.rates) <= 0:
            raise UserError(f"rates {list(self.rates)}: name one or more factors above 0, each once")
        for name, fields in self.settings:
            known = {"tuning", *(field.name for field in dataclasses.fields(self.tuning.method))}
            if unknown := fields.keys() - known:
                raise UserError(f"settings of {name}: no field {min(unknown)!r}; there are {', '.join(sorted(known))}")

    def of(self, method: str, rate: float) -> TuningConfig:
        """The configuration of one way of tuning at `rate` times its learning rate."""
        own = dict(dict(self.settings).get(method, {}))
        way, fit = own.pop("tuning", method), self.tuning.fit
        optim = dataclasses.replace(fit.optim, learning_rate=fit.optim.learning_rate * rate)
        return dataclasses.replace(
            self.tuning,
            tuning=way,
            method=dataclasses.replace(self.tuning.method, **own),
            fit=dataclasses.replace(fit, optim=optim),
        )
