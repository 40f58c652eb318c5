"""Look-ups: the same query in another spelling is found, another query is not."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.inference import store as store_module
from limbeck.inference.lookup import NORMALISATIONS, lookup, normalise, side_store
from limbeck.inference.shards import merge
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("  apple \n", "apple"),
        ("red\t\u00a0 apple", "red apple"),
        ("Apple", "Apple"),
        ("cafe\u0301", "caf\u00e9"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # the non-joiner is part of the word
        ("a\0b", "a\0b"),
    ],
)
def test_normalise(query, expected):
    assert normalise(query) == expected


@pytest.mark.parametrize(("query", "expected"), [("APPLE", "apple"), ("Straße", "strasse"), ("ΣΑΣ", "σασ")])
def test_casefold(query, expected):
    assert normalise(query, casefold=True) == expected


def test_casefold_does_not_depend_on_the_order_of_marks():
    assert normalise("\u03b1\u0345\u0301", casefold=True) == normalise("\u1fb4", casefold=True)


@given(st.text(), st.booleans())
def test_normalising_again_changes_nothing(query, casefold):
    try:
        once = normalise(query, casefold)
    except UserError:
        assert not query.split()
        return
    assert normalise(once, casefold) == once


@given(st.text(min_size=1).filter(str.strip), st.booleans())
def test_composed_and_decomposed_are_the_same(query, casefold):
    assert normalise(unicodedata.normalize("NFD", query), casefold) == normalise(query, casefold)


@pytest.mark.parametrize("query", ["", " \n", "caf\udce9"])
def test_what_cannot_be_a_query(query):
    with pytest.raises(UserError, match="query") as error:
        normalise(query)
    str(error.value).encode()  # it can be printed


def test_a_query_is_found_in_any_spelling_and_a_miss_is_a_miss(tmp_path):
    with PredictionStore(tmp_path / "p.db") as store:
        store.put_many([("k1", " cafe\u0301  noir", {"text": "coffee"}), ("k2", "سیب", {"text": "میوه"})])
        assert lookup(store, "caf\u00e9 noir") == {"text": "coffee"}
        assert lookup(store, "سیب ") == {"text": "میوه"}
        for query in ("caf\u00e9", "cafe noir", "Caf\u00e9 noir", "caf\u00e9 noirs", "سی\u200cب", "%", "k1"):
            assert lookup(store, query) is None


def test_the_store_remembers_how_it_normalises(tmp_path):
    path = tmp_path / "p.db"
    with PredictionStore(path, manifest={"normalisation": "nfc_casefold"}) as store:
        store.put_many([("k1", "Apple", {"text": "pome"})])
    with PredictionStore(path, read_only=True) as store:
        assert lookup(store, "aPPLE") == {"text": "pome"}
    with pytest.raises(UserError, match="normalisation"):
        PredictionStore(path, manifest={"normalisation": "nfc"})
    with pytest.raises(UserError, match="nfc_casefold"):
        PredictionStore(tmp_path / "q.db", manifest={"normalisation": "nfkd"})


def test_every_normalisation_is_explained():
    assert set(NORMALISATIONS) == set(store_module.NORMALISATIONS)


class Online:
    """A model; counts what it is asked."""

    def __init__(self, key="k9"):
        self.asked, self.key = [], key

    def __call__(self, query):
        self.asked.append(query)
        if "refuse" in query:
            raise UserError("too long")
        return self.key, {"text": f"to {query}"}


def test_a_miss_is_predicted_once_and_recorded_in_the_store(tmp_path):
    online = Online()
    with PredictionStore(tmp_path / "p.db") as store:
        store.put_many([("k1", "old", {"text": "of old"})])
        assert lookup(store, "old", online) == {"text": "of old"} and online.asked == []
        assert lookup(store, "new") is None
        assert lookup(store, "new  one", online) == {"text": "to new  one"}
        assert lookup(store, " new one ", online) == lookup(store, "new one") == {"text": "to new  one"}
        assert online.asked == ["new  one"]
        with pytest.raises(UserError, match="too long"):
            lookup(store, "refuse", online)
        assert lookup(store, "refuse") is None
        assert lookup(store, "same prompt", Online("k1")) == {"text": "of old"}  # a key has one payload for ever
    assert not side_store(tmp_path / "p.db").exists()


def test_beside_a_store_for_look_ups_it_is_recorded_in_one_that_merges(tmp_path):
    online, path = Online(), tmp_path / "سیب.serving.db"
    with PredictionStore(tmp_path / "p.db", manifest={"weights": "w", "model": "m"}) as store:
        store.put_many([("k1", "old", {"text": "of old"})])
        store.compact(path)
    with PredictionStore(path, read_only=True) as store:
        for _ in range(2):
            assert lookup(store, "new", online) == {"text": "to new"}
        assert store.find("new") is None and online.asked == ["new"]
    assert side_store(path) == tmp_path / "سیب.serving.online.db"
    merge(tmp_path / "p.db", [side_store(path)])
    with PredictionStore(tmp_path / "p.db", read_only=True) as store:
        assert store.find("new") == {"text": "to new"} and store.find("old") == {"text": "of old"}


def test_where_nothing_can_be_recorded_the_model_is_not_asked(tmp_path):
    online, path = Online(), tmp_path / "p.serving.db"
    with PredictionStore(tmp_path / "p.db", manifest={"weights": "w"}) as store:
        store.compact(path)
    with PredictionStore(path, read_only=True) as store:
        with PredictionStore(side_store(path)), pytest.raises(UserError, match="being written by another"):
            lookup(store, "new", online)
        with PredictionStore(side_store(path)) as side:
            side.require({"weights": "other"})
        with pytest.raises(UserError, match="made with weights other, not w"):
            lookup(store, "new", online)
    assert online.asked == []
