"""Students of the model that banking77 tuned, from 60 % down to an eighth of its parameters, each beside a control.

Data:     as of banking77; the teacher is what `limbeck run banking77` left
Command:  limbeck run distil_banking77 --task FOLDER/banking77 --model runs/banking77/model
"""

import dataclasses

from limbeck.distill.config import DistilConfig
from limbeck.distill.students.config import StudentConfig
from limbeck.experiments.configs import banking77
from limbeck.experiments.distillation_config import DistillationConfig, TeachingConfig

config = DistillationConfig(
    tuning=dataclasses.replace(
        banking77.config,
        model="runs/banking77/model",
        smoothing=0.0,
        fit=dataclasses.replace(
            banking77.config.fit,
            evaluate_every=200,
            optim=dataclasses.replace(banking77.config.fit.optim, learning_rate=2e-3),
        ),
    ),
    teaching=TeachingConfig(
        distil=DistilConfig(temperature=2.0, hard_weight=0.5),
        student=StudentConfig(start="pruned"),
        shares=(0.6, 0.25, 0.125),
    ),
)
main = "limbeck.experiments.distillation:run"
