"""Where a model comes from: told by its folder, kept through every step, refused where it tells nothing."""

import json

import jax
import pytest

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import digest
from limbeck.model.pretrained import lineage_of, load_pretrained, save_pretrained
from limbeck.model.pretrained.lineage import (
    Origin,
    Parent,
    ancestors,
    data_of,
    descended,
    foundations,
    read_lineage,
    to_json,
)
from limbeck.model.transformer import init

CONFIG = ModelConfig(vocab_size=32, width=8, depth=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, max_len=16)


def weights(seed):
    return init(CONFIG, jax.random.key(seed))


def saved(folder, seed, made, parents=(), **more):
    """The lineage of a model that was saved with these parents."""
    origin = Origin(folder.name, made, 100, **more)
    save_pretrained(folder, CONFIG, weights(seed), lineage=descended(origin, parents))
    return load_pretrained(folder).lineage


@pytest.fixture
def chain(tmp_path):
    data = data_of("world", [{"input": "plum", "output": "drupe"}])
    base = saved(tmp_path / "base", 0, "pretrained", data=(data_of("text", ["a", "b"]),))
    tuned = saved(tmp_path / "tuned", 1, "tuned", [("base", base)], data=(data,), method="lora", trained=7)
    start = saved(tmp_path / "start", 2, "pruned", [("base", tuned)])
    student = saved(tmp_path / "student", 3, "distilled", [("base", start), ("teacher", tuned)], cost={"seconds": 1.5})
    return {"base": base, "tuned": tuned, "start": start, "student": student}


def test_a_folder_tells_the_digest_of_its_own_weights(chain):
    for seed, lineage in enumerate(chain.values()):
        assert lineage[0].digest == digest(weights(seed))


def test_the_chain_goes_back_to_the_foundation_and_names_each_model_once(chain):
    assert [each.name for each in chain["student"]] == ["student", "start", "tuned", "base"]
    assert [(role, steps, each.name) for role, steps, each in ancestors(chain["student"])] == [
        ("base", 1, "start"),
        ("base", 2, "tuned"),
        ("base", 3, "base"),
        ("teacher", 1, "tuned"),  # what it was made of stands above
    ]
    own = chain["student"][0]
    assert own.cost == {"seconds": 1.5}
    assert {(each.role, each.digest) for each in own.parents} == {
        ("base", chain["start"][0].digest),
        ("teacher", chain["tuned"][0].digest),
    }
    assert chain["tuned"][0].trained == 7 and chain["base"][0].data[0].records == 2


def test_a_model_without_a_lineage_was_found(tmp_path):
    save_pretrained(tmp_path / "m", CONFIG, weights(0))
    model = load_pretrained(tmp_path / "m")
    assert model.lineage == () and not (tmp_path / "m" / "README.md").exists()
    (own,) = lineage_of(model, tmp_path / "m")
    assert (own.name, own.made, own.digest) == ("m", "found", digest(weights(0)))


def test_another_model_in_the_same_folder_has_nothing_of_the_first(chain, tmp_path):
    save_pretrained(tmp_path / "student", CONFIG, weights(9))
    assert load_pretrained(tmp_path / "student").lineage == ()
    assert not (tmp_path / "student" / "README.md").exists()
    assert not (tmp_path / "student" / "card.json").exists()


def test_a_lineage_that_was_changed_is_refused(chain, tmp_path):
    path = tmp_path / "tuned" / "lineage.json"
    path.write_text(path.read_text().replace("lora", "full"))
    with pytest.raises(UserError, match=r"lineage\.json is missing or has changed"):
        load_pretrained(tmp_path / "tuned")


def test_data_is_told_by_its_content_and_order():
    records = [{"a": "1", "b": "گلابی"}, {"a": "2", "b": ""}]
    same = [{"b": "گلابی", "a": "1"}, {"b": "", "a": "2"}]
    assert data_of("x", records) == data_of("x", iter(same))
    others = [records[::-1], records[:1], [*records, {}], [{"a": "1", "b": "گلابی", "c": ""}, records[1]]]
    assert len({data_of("x", each).digest for each in [records, *others]}) == 5
    assert data_of("x", ["ab", "c"]).digest != data_of("x", ["a", "bc"]).digest
    assert data_of("lone surrogate", ["\ud800"]).records == 1


def test_a_lineage_is_told_and_read_back(chain):
    for lineage in chain.values():
        assert read_lineage(to_json(lineage), "here") == lineage


def test_a_foundation_is_where_weights_come_from_and_a_teacher_is_none(chain):
    names = {name: [each.name for each in foundations(lineage)] for name, lineage in chain.items()}
    assert names == {"base": [], "tuned": ["base"], "start": ["base"], "student": ["base"]}
    new = descended(Origin("new", "distilled", 1), [("teacher", chain["tuned"])])
    assert foundations(new) == []
    random = (Origin("random", "initialised", 1, "00"),)
    assert foundations(descended(Origin("x", "tuned", 1), [("base", random)])) == []


def test_many_generations_of_models_that_taught_themselves_are_a_short_tree():
    lineage = (Origin("0", "pretrained", 1, "0"),)
    for i in range(1, 40):
        origin = Origin(str(i), "distilled", 1, str(i))
        lineage = descended(origin, [("base", lineage), ("teacher", lineage)])
    assert len(ancestors(lineage)) == 2 * 39


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 5), ("digest", ["x"]), ("cost", None), ("cost", {"joules": "many"}), ("config", 3), ("commit", 7),
        ("parameters", "1"), ("parents", [{"role": "mother", "digest": "ab"}]), ("made", "conjured"),
        ("data", [{"name": "x", "records": "many", "digest": "ab"}]), ("versions", []),
    ],
)  # fmt: skip
def test_fields_of_another_type_are_one_line(field, value):
    told = json.loads(to_json((Origin("x", "tuned", 1, "ab", parents=(Parent("base", "cd"),)),)))
    told["lineage"][0][field] = value
    with pytest.raises(UserError, match="lineage.json tells no lineage"):
        read_lineage(json.dumps(told), "lineage.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"lineage": []}',
        '{"lineage": [{"name": "x"}]}',
        json.dumps({"lineage": [{"name": "x", "made": "conjured", "parameters": 1, "parents": [], "data": []}]}),
        json.dumps({"lineage": [{"name": "x", "made": "tuned", "parameters": 1, "parents": [7], "data": []}]}),
        "[" * 100_000,
    ],
)
def test_a_file_that_tells_no_lineage_is_one_line(text):
    with pytest.raises(UserError, match="lineage.json tells no lineage") as error:
        read_lineage(text, "lineage.json")
    assert "\n" not in str(error.value)


def test_fields_of_a_later_version_are_passed_over(chain):
    told = json.loads(to_json(chain["tuned"]))
    told["lineage"][0]["moon"] = "full"
    assert read_lineage(json.dumps(told), "here") == chain["tuned"]


def test_a_circle_ends(chain):
    told = json.loads(to_json(chain["tuned"]))
    told["lineage"][1]["parents"] = [{"role": "base", "digest": told["lineage"][0]["digest"]}]
    assert len(ancestors(read_lineage(json.dumps(told), "here"))) <= 2
