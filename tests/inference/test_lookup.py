"""Look-ups: the same query in another spelling is found, another query is not."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.inference.lookup import lookup, normalise
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
