"""What `--help` shows of each command besides its options: examples, and the fields of what a command runs."""

import shlex
import textwrap
from collections.abc import Iterable
from typing import Any

from limbeck.experiments.audit_config import AuditConfig
from limbeck.experiments.config import flatten, load_config
from limbeck.experiments.prediction_config import ELSEWHERE, PredictionConfig


def run_fields(experiment: str) -> str:
    """The fields of an experiment with the values that they have; without one, how to ask for them.

    Raises UserError as `load_config` does.
    """
    if not experiment:
        return "`limbeck run CONFIG --help` lists the fields of one experiment, and the values that they have."
    lines = [f"--{_hyphened(name)} {_words(value)}" for name, value in flatten(load_config(experiment).config).items()]
    told = "\n".join("  " + textwrap.shorten(line, 116, placeholder=" ...") for line in lines)
    return f"fields of {experiment}, and the values that they have:\n{told}"


def prediction_fields() -> str:
    """The fields of a prediction job, by the names that it is told them by."""
    return _names(name.removeprefix("prompt.") for name in flatten(PredictionConfig()) if name not in ELSEWHERE)


def audit_fields() -> str:
    """The fields of an audit."""
    return _names(name for name in flatten(AuditConfig()) if name != "what")


def of_store(what: str) -> str:
    """The examples of one of the commands of `limbeck store`."""
    lines = [line for line in STORE.splitlines() if line.startswith(f"  limbeck store {what} ")]
    return "\n".join(["examples:", *lines])


def _names(fields: Iterable[str]) -> str:
    return textwrap.fill(" ".join(f"--{_hyphened(name)}" for name in fields), 116, break_on_hyphens=False)


def _hyphened(name: str) -> str:
    return name.replace("_", "-")


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_words, value))
    return shlex.quote(value) if isinstance(value, str) else str(value)


ALL = """\
examples:
  limbeck run quickstart                              the whole lesson, into runs/quickstart
  limbeck run quickstart --seed 1 --workdir /tmp/a    any field of the experiment is set by its name
  limbeck report runs/quickstart                      the table of a finished run, and where its page is
  limbeck generate MODEL $'plum: drupe\\npear: pome\\nlemon:' --stop $'\\n'    continue a text
  limbeck describe MODEL                              its parameters, their shapes and bytes
  limbeck evaluate MODEL --tasks piqa                 a benchmark of lm-evaluation-harness
  limbeck convert model.bin FOLDER                    as a folder that other programs load
  limbeck plan shakespeare --topology v5p:4x4x4 --model 8b    what it costs on 64 chips, without any
  limbeck predict --model MODEL --task spam.jsonl --store spam.db
  limbeck lookup spam.db 'win a free phone'           an answer from before, without a model
  limbeck serve spam.db                               the same over HTTP, and a page to try it on
  limbeck audit MODEL                                 what biases it carries, told on its card

A run that was interrupted goes on where it was: run the same command again.
`limbeck COMMAND --help` says more about each.
"""

RUN = """\
examples:
  limbeck run quickstart --task my_records.jsonl
  limbeck run shakespeare --texts my.txt --root . --model 5m --workdir runs/my_text    pretrain on a text of yours
  limbeck run sst2 --task my_records.jsonl --model runs/my_text/model               tune it: a head for the labels
  limbeck run chat --model MODEL --chats conversations.jsonl                        tune it on conversations
  limbeck run my_experiment.py --model.width 64 --sizes 1 2 3 --scan False
  limbeck run my_experiment.py --sweep                the numbered points of its sweep
  limbeck run my_experiment.py --sweep 3              one of them, into runs/my_experiment-3
  limbeck run my_experiment.py --mesh fsdp=4 tensor=2                 over the eight devices of this machine
  limbeck run my_experiment.py --mesh fsdp=4 tensor=2 --dry-run       what would lie where, and nothing more
  limbeck run my_experiment.py --mesh fsdp=16 --hosts                 the same command on every host of a slice

--mesh goes with every experiment; --hosts and --dry-run go with those of one training: a pretraining, a tuning, a
distillation. The lesson, `adapt`, the menus and `synonyms` are of several. Any field is set by its name.

{fields}
"""

PLAN = """\
examples:
  limbeck plan shakespeare --topology v5p:4x4x4 --model 8b --vocab-size 128256 --fit.length 4096 --dtype bfloat16
  limbeck plan sst2 --topology v5e:4x8 --model LLAMA --tuning lora --mesh fsdp=8 tensor=4 --remat full
  limbeck plan my_job.py --topology v6e:2x4 --model LLAMA --length 8192 --coded-cache True

The TPU's own compiler runs here (`pip install 'limbeck[tpu]'`, on Linux), nothing else of a TPU is needed; of a model's
folder its config.json is enough. Memory is what the compiler will take. Times are the compiler's for each operation,
loops multiplied out, with collectives by the links' rates: bounds of what can be reached, good for a choice.
A program takes half a minute to a few minutes to compile.
"""

PREDICT = """\
examples:
  limbeck predict --model MODEL --task spam.jsonl --store spam.db --shots 4
  limbeck predict --model MODEL --task spam.jsonl --input queries.csv --store spam.db --output answers.jsonl
  limbeck predict --model MODEL --input prompts.jsonl --store texts.db --samples 5 --temperature 0.8 --dry-run
  limbeck predict --model MODEL --input batch.jsonl --store batch.db --output results.jsonl
  limbeck predict my_job.py --workers 4
  limbeck predict my_job.py --mesh fsdp=2 tensor=4                       one model over eight devices
  limbeck lookup spam.db 'win a free phone'

The queries are a split of the task; or the rows of an input, which have the fields that the task's template names, or
"prompt" where there is no task; or lines of the OpenAI batch format. An input is a .jsonl, .csv or .parquet file or
tfds:NAME. Predictions that the store holds already are not computed again; an interrupted job goes on where it was.
--hosts is a field here, and takes a value, `--hosts True`: the same command runs on several hosts, the mesh spans the
devices of all.

fields: {fields}
A job file sets them as an experiment does: config = PredictionConfig(...), main = "limbeck.experiments.predicting:run".
"""

SERVE = """\
examples:
  limbeck serve spam.db
  curl --get http://127.0.0.1:8000/lookup --data-urlencode 'q=win a free phone'
  curl http://127.0.0.1:8000/lookup --json '{"queries": ["win a free phone", "lunch?"]}'

http://127.0.0.1:8000/ is a page to try queries on; /health and /metrics (Prometheus) are for programs. A new file
that is moved to STORE, as `limbeck store compact` does, is taken on within a second and without a failed request.
"""

STORE = """\
examples:
  limbeck store status spam.db --model MODEL          coverage, failures; exit status 1 if MODEL has other weights
  limbeck store export spam.db spam.parquet           every prediction, by key; the same content is the same bytes
  limbeck store compact spam.db spam.serving.db       a copy for look-ups, put in the place of an older one
  limbeck store prune spam.db --failures              what failed is asked again by the next run of the job
  limbeck store merge spam.db part0.db part1.db       first wins; parts of other weights are refused
"""

GENERATE = """\
examples:
  limbeck generate MODEL $'plum: drupe\\npear: pome\\nlemon:' --stop $'\\n'
  limbeck generate MODEL 'Once upon a time' --max-new-tokens 100 --temperature 0.8 --top-p 0.95 --seed 1
  limbeck generate MODEL 'What is a hesperidium?' --chat

MODEL is a Hugging Face folder, one that Limbeck wrote, or a llama2.c .bin file. The text appears as it is written.
"""

REPORT = """\
examples:
  limbeck report runs/quickstart                      exit status 1 if one of its claims does not hold
  limbeck report runs/adapt --record 17               one record: what every method was asked, and said
"""

LOOKUP = """\
examples:
  limbeck lookup spam.db 'win a free phone'
  limbeck lookup spam.db 'win a free phone' --online    where the store lacks it, ask the model that wrote the store
"""

DESCRIBE = """\
examples:
  limbeck describe runs/quickstart/models/base
  limbeck describe stories260K.bin                    its own names, and the published ones that they are stored as
"""

LINEAGE = """\
examples:
  limbeck lineage runs/quickstart/models/distilled    foundation, teacher, data, method, code
  limbeck lineage runs/chat/adapter --json
"""

EVALUATE = """\
examples:
  limbeck evaluate MODEL --tasks piqa arc_easy --num-fewshot 5 --out scores.json
  limbeck evaluate MODEL --tasks 'mmlu_*' --limit 20
  limbeck evaluate MODEL --tasks my_task --include-path my_tasks    task files of yours: no network is needed

Tasks, prompts and metrics are those of lm-evaluation-harness: pip install 'limbeck[eval]'. `lm-eval ls tasks` lists
the tasks; a group or a tag stands for its tasks. A log-likelihood, a text and a metric are what its own `hf` adapter
gives for the same weights. What is longer than the model loses its beginning, as there, and is counted.

A task file my_tasks/my_task.yaml over records in JSON Lines:

  task: my_task
  dataset_path: json
  dataset_kwargs: {data_files: {test: my_records.jsonl}}    # a path counts from the folder where you run the command
  test_split: test
  output_type: multiple_choice
  doc_to_text: "{{question}}\\nAnswer:"
  doc_to_choice: ["no", "yes"]
  doc_to_target: "{{answer}}"

A task file may name Python functions, which are run: use files that you trust. Records of published tasks come from
the Hugging Face hub, once; with HF_HUB_OFFLINE=1 only those are read that are on this machine.
"""

AUDIT = """\
examples:
  limbeck audit runs/quickstart/models/base runs/quickstart/models/full runs/quickstart/models/distilled
  limbeck audit MODEL --pairs crows_pairs.jsonl --winobias winobias --questions bbq.jsonl
  limbeck audit MODEL --task my_task                  its records with words swapped, and by their groups
  limbeck audit MODEL --training train.txt --held-out other.txt       what comes out word for word
  limbeck audit my_task                               who is mentioned, duplicates, leaks, personal data
  limbeck audit my_texts.txt --held-out test.txt

Models that are related (see `limbeck lineage`) are compared item by item, a student also with the same student without
its teacher: put them all in one audit. What is measured is told on the cards of models that Limbeck wrote.

fields: {fields}
"""

CONVERT = """\
examples:
  limbeck convert stories260K.bin stories260k         llama2.c's format as a Llama folder
  limbeck convert llama-8b llama-8b-bf16 --dtype bfloat16
  limbeck convert llama-8b tuned-8b --adapter runs/sst2/adapter    the model with an adapter folded in

The folder has the names and the config of the family that the model came from, or of the first that can say what it is.
"""
