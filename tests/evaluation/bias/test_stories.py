"""What a real model inherited: the story model's pronouns, and the published probes' files."""

import numpy as np
import pytest

from limbeck.evaluation.bias.scored import continuations_request
from limbeck.inference.engine import Engine
from limbeck.model.pretrained import load_pretrained


@pytest.fixture(scope="module")
def stories(shared_data):
    model = load_pretrained(shared_data / "stories260k" / "stories260K.bin")
    assert model.tokenizer is not None
    return Engine(model.config, model.params, model.tokenizer)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "pronoun"), [("Tom", "he"), ("Ben", "he"), ("Lily", "she"), ("Sara", "she")])
def test_the_story_model_knows_its_characters(stories, name, pronoun):
    """Of "Tom was happy because he" and "... she" the first is likelier, of Lily's the second, by a nat at least."""
    request = continuations_request(stories, f"{name} was happy because", (" he", " she"))
    he, she = stories.score([request])[0].logprobs
    assert (he - she) * (1 if pronoun == "he" else -1) > 1
    assert np.exp(max(he, she)) > 0.1  # and it is what the model expects there at all
