"""Every way of adapting one model to one task, on the same records, in one table: prompts, a searched one, tuned parts,
a distilled student; what each costs, and after how many requests the dearer start pays.

Data:     none; the task is the built-in world, the model the foundation of `make quickstart`
Command:  limbeck run adapt                     or, for yours:  limbeck run adapt --task TASK --model MODEL
"""

import dataclasses

from limbeck.distill.students.config import StudentConfig
from limbeck.experiments.adaptation_config import AdaptationConfig
from limbeck.experiments.configs import distil_world, peft_menu
from limbeck.experiments.distillation_config import TeachingConfig

config = AdaptationConfig(
    tuning=dataclasses.replace(peft_menu.config.tuning, tuning="full"),
    student_fit=distil_world.config.tuning.fit,
    teaching=TeachingConfig(
        student=StudentConfig(start="pruned"), shares=(0.25,), control=False, transfer_tokens=120_000
    ),
)
main = "limbeck.experiments.adaptation:run"
