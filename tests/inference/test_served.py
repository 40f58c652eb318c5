"""A store that is replaced while it is served: a whole new file is taken on, a damaged one is not, and it is said."""

import asyncio
import os

import pytest

from limbeck.inference import served as served_module
from limbeck.inference.served import ServedStore
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError

ROWS = 200


def make(path, version, rows=ROWS):
    """A compacted store in which query i finds `version`."""
    job = path.with_name(f"job{version}.db")
    with PredictionStore(job, manifest={"weights": f"w{version}"}) as store:
        store.put_many([(f"key{i:03}", f"query {i}", {"text": f"{version}"}) for i in range(rows)])
        store.compact(path)


@pytest.fixture
def path(tmp_path):
    make(tmp_path / "serving.db", 1)
    return tmp_path / "serving.db"


def version(served):
    return served.store.find("query 7")["text"]


def said(served):
    return served.problem or ""


def refreshed(served):
    asyncio.run(served.refresh())
    return served


def test_a_new_file_is_taken_on_and_the_old_one_closed(path):
    served = ServedStore(path)
    assert (version(served), served.facts.rows, served.facts.manifest["weights"]) == ("1", ROWS, "w1")
    before, digest = served.store, served.facts.digest
    assert refreshed(served).store is before and served.swaps == 0
    make(path, 2, rows=ROWS + 1)
    assert version(served) == "1"  # the old file, under its feet
    refreshed(served)
    assert (version(served), served.facts.rows, served.facts.manifest["weights"]) == ("2", ROWS + 1, "w2")
    assert served.swaps == 1 and served.problem is None and served.facts.digest != digest
    with pytest.raises(Exception, match="closed"):
        before.find("query 7")
    served.close()


def test_a_link_that_leads_elsewhere_is_a_new_file(path):
    link = path.with_name("current.db")
    link.symlink_to(path)
    served = ServedStore(link)
    make(path.with_name("v2.db"), 2)
    os.symlink(path.with_name("v2.db"), path.with_name("next"))
    os.replace(path.with_name("next"), link)
    assert version(refreshed(served)) == "2"
    served.close()


def cut(data):
    return data[: len(data) // 2]


def flip(data):  # within a payload, where the structure of the file is whole
    at = data.index(b'{"text": "2"}') + 10
    return data[:at] + b"9" + data[at + 1 :]


def overwrite(data):
    at = data.index(b'{"text": "2"}')
    return data[:at] + b"\xa5" * 1000 + data[at + 1000 :]


def unlink(data):  # within what leads from a query to its prediction
    at = data.rindex(b"query 123")
    return data[:at] + b"query 12X" + data[at + 9 :]


DAMAGE = {
    "cut": cut,
    "flipped": flip,
    "unlinked": unlink,
    "overwritten": overwrite,
    "foreign": lambda data: b"another file" * 1000,
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_not_served_and_it_is_said_why(path, damage, capfd):
    served = ServedStore(path)
    make(path.with_name("two.db"), 2)
    bad = path.with_name("bad.db")
    bad.write_bytes(DAMAGE[damage](path.with_name("two.db").read_bytes()))
    os.replace(bad, path)
    for _ in range(2):
        refreshed(served)
        assert all(served.store.find(f"query {i}") == {"text": "1"} for i in range(ROWS))
        problem = said(served)
        assert str(path) in problem and ("damaged" in problem or "checksum" in problem)
    with pytest.raises(UserError, match=r"damaged|checksum"):
        ServedStore(path)
    os.replace(path.with_name("two.db"), path)
    assert version(refreshed(served)) == "2" and served.problem is None
    served.close()
    assert "Traceback" not in capfd.readouterr().err  # a damaged file is no surprise


def test_a_damaged_file_is_read_but_once(path, monkeypatch):
    served, elsewhere, read = ServedStore(path), served_module._elsewhere, []
    monkeypatch.setattr(served_module, "_elsewhere", lambda *words: read.append(words) or elsewhere(*words))
    path.with_name("bad").write_bytes(b"another file" * 1000)
    os.replace(path.with_name("bad"), path)
    for _ in range(5):
        refreshed(served)
    assert len(read) == 1 and served.problem
    served.close()


def test_a_file_that_is_gone_is_served_and_one_that_comes_back_is_no_problem(path):
    served = ServedStore(path)
    aside = path.with_name("aside")
    os.rename(path, aside)
    assert version(refreshed(served)) == "1" and "cannot read" in said(served)
    os.rename(aside, path)
    assert version(refreshed(served)) == "1" and served.problem is None and served.swaps == 0
    served.close()


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(path, monkeypatch):
    served, elsewhere = ServedStore(path), served_module._elsewhere
    make(path, 2)

    async def replaced_meanwhile(what, path):
        facts = await elsewhere(what, path)
        if facts.manifest["weights"] == "w2":
            make(path, 3)
        return facts

    monkeypatch.setattr(served_module, "_elsewhere", replaced_meanwhile)
    assert version(refreshed(served)) == "1"  # what was opened then is not what was read
    assert version(refreshed(served)) == "3" and served.facts.manifest["weights"] == "w3"
    served.close()


def test_an_error_that_nobody_expected_keeps_the_old_file_and_is_printed(path, monkeypatch, capfd):
    served = ServedStore(path)
    make(path, 2)
    monkeypatch.setattr(served_module.sys, "executable", "/bin/false")
    assert version(refreshed(served)) == "1" and "ended with status 1" in said(served)
    assert "RuntimeError" in capfd.readouterr().err
    served.close()


def test_a_store_that_grows_is_served_with_its_new_rows(path, monkeypatch):
    with PredictionStore(path.with_name("job1.db")) as job:
        served = ServedStore(job.path)
        store = served.store
        assert served.facts.digest == ""
        job.put_many([(f"new{i}", f"new {i}", {"text": "x" * 1000}) for i in range(5000)])
        assert served.store.find("new 7") == {"text": "x" * 1000}
        refreshed(served)
        assert served.facts.rows == ROWS  # it was counted just now
        monkeypatch.setattr(served_module, "_COUNT_EVERY", 0)
        refreshed(served)
        assert served.facts.rows == ROWS + 5000 and served.store is store and served.swaps == 0
        assert served.problem is None
        served.close()


def test_examples_are_short_and_of_one_line(tmp_path):
    queries = ["می‌خواهم", "a\x07b", "x" * 61, "<b>", "fine"]
    with PredictionStore(tmp_path / "p.db") as store:
        store.put_many([(f"k{i}", query, {"text": "t"}) for i, query in enumerate(queries)])
    assert served_module.count(tmp_path / "p.db").examples == ["می‌خواهم", "<b>", "fine"]
