"""Students of the model that sst2 tuned, of a half and a quarter of its parameters, each beside one without a teacher.

Data:     as of sst2; the teacher is what `limbeck run sst2` left
Command:  limbeck run distil_sst2 --task FOLDER/sst2 --model runs/sst2/model
"""

import dataclasses

from limbeck.distill.config import DistilConfig
from limbeck.distill.students.config import StudentConfig
from limbeck.experiments.configs import sst2
from limbeck.experiments.distillation_config import DistillationConfig, TeachingConfig

config = DistillationConfig(
    tuning=dataclasses.replace(sst2.config, model="runs/sst2/model", smoothing=0.0),
    teaching=TeachingConfig(
        distil=DistilConfig(temperature=2.0, hard_weight=0.5),
        student=StudentConfig(start="pruned"),
        shares=(0.5, 0.25),
    ),
)
main = "limbeck.experiments.distillation:run"
