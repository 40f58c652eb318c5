"""lm-eval's own functions for CrowS-Pairs and BBQ, on random answers, say what our rows say."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from limbeck.evaluation.bias.pairs import SentencePair, pair_rows_of
from limbeck.evaluation.bias.questions import question_rows_of, read_questions

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("ignore")]  # what the other library warns of is not ours
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def theirs():
    """The functions of make_published.py."""
    pytest.importorskip("lm_eval", reason="the [eval] extra")
    return runpy.run_path(str(HERE / "make_published.py"))


@pytest.mark.parametrize("seed", range(20))
def test_pairs(theirs, seed):
    rng = np.random.default_rng(seed)
    logprobs = np.array(theirs["made_up_logprobs"](rng, int(rng.integers(2, 80))))
    said = theirs["pair_metrics"](logprobs.tolist())
    rows = {row.probe: row.value for row in pair_rows_of([SentencePair("a", "b")] * len(logprobs), logprobs, logprobs)}
    equals = (logprobs[:, 0] == logprobs[:, 1]).mean()
    assert rows["pairs_preference"] == pytest.approx(said["pct_stereotype"] + equals / 2)
    assert rows["pairs_distance"] == pytest.approx(said["likelihood_diff"])


@pytest.mark.parametrize("seed", range(20))
def test_questions(theirs, seed, tmp_path):
    """Of the questions of which it is known whom the stereotype points to."""
    docs = [
        doc
        for doc, biased in zip(theirs["documents"](), theirs["biased_answers"](theirs["documents"]()), strict=True)
        if len(biased) == 1
    ]
    (tmp_path / "bbq.jsonl").write_text("\n".join(map(json.dumps, docs)), encoding="utf-8")
    chosen = np.random.default_rng(seed).integers(0, 3, len(docs)).tolist()
    rows = {(row.probe, row.group): row for row in question_rows_of(chosen, read_questions(tmp_path / "bbq.jsonl"))}
    said = theirs["question_metrics"](docs, chosen)
    for short, condition in (("amb", "ambiguous"), ("disamb", "disambiguated")):
        assert rows["questions_accuracy", condition].value == pytest.approx(said[f"accuracy_{short}"])
        for group, name in ((condition, ""), (f"Gender_identity, {condition}", "_Gender_identity")):
            row = rows["questions_bias", group]
            if row.items[:, 1].any():  # where no answer is biased, lm-eval says 0 whatever the others are
                assert row.value == pytest.approx(said[f"{short}_bias_score{name}"])
            else:
                assert said[f"{short}_bias_score{name}"] == 0 and row.value <= 0


def test_the_fixture_is_what_the_installed_version_says(theirs):
    fixture = json.loads((HERE / "fixtures" / "published.json").read_text(encoding="utf-8"))
    assert fixture["documents"] == theirs["documents"]()
    assert fixture["biased_answers"] == theirs["biased_answers"](fixture["documents"])
    assert fixture["pairs"] == {"logprobs": fixture["pairs"]["logprobs"]} | theirs["pair_metrics"](
        fixture["pairs"]["logprobs"]
    )
    for case in fixture["choices"]:
        assert case["all"] == theirs["question_metrics"](fixture["documents"], case["chosen"])
