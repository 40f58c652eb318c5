"""A file of weights that is not exactly what it has to be is named and refused; none leads out of its folder."""

import json
import os
import shutil

import numpy as np
import pytest

from limbeck.model.errors import UserError
from limbeck.model.pretrained.weight_files import INDEX, SINGLE, Unsaved, open_weights, save_weights

NAMES = ("embed", "layer.0", "layer.1", "head")
FIRST, SECOND, THIRD, FOURTH = (f"model-{i:05}-of-00004.safetensors" for i in (1, 2, 3, 4))


def save(folder, limit=10**9):
    arrays = {name: np.full(4, number, np.float32) for number, name in enumerate(NAMES)}
    save_weights(folder, [Unsaved(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()], limit)


def assert_whole(folder):
    stored = open_weights(folder)
    assert {name: tensor.read()[0] for name, tensor in stored.items()} == {name: i for i, name in enumerate(NAMES)}


def refusal(folder):
    """What is said about the folder, in one line that can be read."""
    with pytest.raises(UserError) as caught:
        for tensor in open_weights(folder).values():
            tensor.read()
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and len(message) < 700
    return message.replace(str(folder), "")


def entry(dtype="F32", shape=(2,), start=0, stop=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def write_raw(folder, header, data=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / SINGLE).write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


ENTRY = json.dumps(entry()).encode()
HALVES = ENTRY.replace(b"F32", b"F16").replace(b"[2]", b"[4]")
FREE = b'{"a":{"x":%b,' + ENTRY[1:] + b"}"  # with a field that nobody reads
HEADERS = {
    "a name twice": (b'{"a":%b,"a":%b}' % (ENTRY, ENTRY), bytes(8)),
    "a name twice, in two spellings": (b'{"\\u0061":%b,"a":%b}' % (ENTRY, ENTRY), bytes(8)),
    "a name twice, of two dtypes": (b'{"a":%b,"a":%b}' % (ENTRY, HALVES), bytes(8)),
    "a field twice": (b'{"a":{"shape":[1],%b}' % ENTRY[1:], bytes(8)),
    "overlap": ({"a": entry(), "b": entry(start=4, stop=12)}, bytes(12)),
    "one place for two": ({"a": entry(), "b": entry()}, bytes(8)),
    "a hole": ({"a": entry(), "b": entry(start=12, stop=20)}, bytes(20)),
    "a hole at the start": ({"a": entry(start=4, stop=12)}, bytes(12)),
    "more behind the end": ({"a": entry()}, bytes(9)),
    "less than the header says": ({"a": entry()}, bytes(7)),
    "beyond the end": ({"a": entry(start=2**40, stop=2**40 + 8)}, bytes(8)),
    "backwards": ({"a": entry(shape=(0,), start=8, stop=0)}, bytes(8)),
    "a shape that is not the size": ({"a": entry(shape=(3,))}, bytes(8)),
    "a dtype that is not the size": ({"a": entry("F16")}, bytes(8)),
    "a product that overflows": ({"a": entry(shape=(2**32, 2**32), stop=0)}, b""),
    "bytes that overflow": ({"a": entry(shape=(2**62,), stop=0)}, b""),
    "a shape that no array has": ({"a": entry(shape=(0, 2**62), stop=0)}, b""),
    "too many axes": ({"a": entry(shape=(1,) * 70, stop=4)}, bytes(4)),
    "negative": ({"a": entry(shape=(-2,))}, bytes(8)),
    "negative twice": ({"a": entry(shape=(-2, -1))}, bytes(8)),
    "a fraction": ({"a": entry(shape=(2.0,))}, bytes(8)),
    "a truth": ({"a": entry(shape=(True, 2))}, bytes(8)),
    "a number of 100 digits": ({"a": entry(shape=(10**100,))}, bytes(8)),
    "a number of 5,000 digits": (FREE % (b"9" * 5000), bytes(8)),
    "an unknown dtype": ({"a": entry("Q4_K")}, bytes(8)),
    "a packed dtype": ({"a": entry("F4", (16,))}, bytes(8)),
    "a dtype in another spelling": (b'{"a":%b}' % ENTRY.replace(b'"F32"', b'{"F32":null}'), bytes(8)),
    "an entry in another spelling": ({"a": ["F32", [2], [0, 8]]}, bytes(8)),
    "three offsets": (b'{"a":%b}' % ENTRY.replace(b"[0, 8]", b"[0, 8, 8]"), bytes(8)),
    "no entry": ({"a": None}, bytes(8)),
    "no object": ([entry()], bytes(8)),
    "nothing": (b"", b""),
    "not JSON": (b'{"a":', bytes(8)),
    "not UTF-8": (b'{"\xff":%b}' % ENTRY, bytes(8)),
    "half a character": (b'{"\\ud800":%b}' % ENTRY, bytes(8)),
    "deep": (b"[" * 10**6, b""),
    "deep where nobody reads": (FREE % (b"[" * 10**5 + b"]" * 10**5), bytes(8)),
    "a name of many lines": ({"a\nb" * 99: entry(start=4, stop=12)}, bytes(12)),
}


@pytest.mark.parametrize("header, data", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused(tmp_path, header, data):
    write_raw(tmp_path, header, data)
    assert SINGLE in refusal(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 10**6, 10**8, 10**9, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1])
def test_a_header_length_that_lies_is_refused(tmp_path, length):
    write_raw(tmp_path, {"a": entry()}, length=length)
    assert f"{SINGLE} is no whole safetensors file" in refusal(tmp_path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    save(tmp_path)
    whole = (tmp_path / SINGLE).read_bytes()
    for size in range(len(whole)):
        (tmp_path / SINGLE).write_bytes(whole[:size])
        assert f"{SINGLE} is no whole safetensors file" in refusal(tmp_path)


def test_a_name_that_is_there_twice_is_found_among_many(tmp_path):
    many = ",".join(f'"{number}":""' for number in range(200_000))
    write_raw(tmp_path, f'{{"__metadata__":{{{many},"199999":""}}}}'.encode(), b"")
    assert "'199999' is there twice" in refusal(tmp_path)


def test_a_folder_without_weights_says_what_is_there_instead(tmp_path):
    assert f"a model folder holds {SINGLE}" in refusal(tmp_path)
    assert "no weights in" in refusal(tmp_path / "nowhere")
    (tmp_path / SECOND).write_bytes(b"")
    assert f"{SECOND} but no {INDEX}" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.pth", "a.ckpt", "pytorch_model-00001-of-00002.bin"])
def test_pickles_are_refused_and_the_way_out_is_said(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nabort\n(tR.")
    for place in (tmp_path, tmp_path / name):
        message = refusal(place)
        assert "is a pickle" in message and "save_pretrained" in message
    save(tmp_path)
    assert_whole(tmp_path)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / SINGLE).mkdir()
    assert f"{SINGLE} is not a file" in refusal(tmp_path)
    (tmp_path / SINGLE).rmdir()
    os.mkfifo(tmp_path / SINGLE)  # opened, it would wait for a writer for ever
    assert f"{SINGLE} is not a file" in refusal(tmp_path)


@pytest.fixture
def sharded(tmp_path):
    save(tmp_path / "m", limit=1)
    return tmp_path / "m"


def rewrite_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m.update(head="model-00009.safetensors"), "cannot read /model-00009.safetensors (No such file"),
        (lambda m: m.update(surplus=FIRST), f"{INDEX} has 'surplus' in '{FIRST}', which does not hold it"),
        (lambda m: m.update({"layer.1": FIRST}), f"{INDEX} has 'layer.1' in '{FIRST}', which does not hold it"),
        (lambda m: m.clear(), f"{INDEX} has no weight_map"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(sharded, change, words):
    rewrite_index(sharded, change)
    assert words in refusal(sharded)


def test_a_shard_with_more_than_the_index_says_is_refused(tmp_path):
    save(tmp_path, limit=32)  # two tensors in a shard
    rewrite_index(tmp_path, lambda m: m.pop("layer.0"))
    assert "holds 'layer.0', which the index has nowhere" in refusal(tmp_path)


def test_a_tensor_in_two_shards_is_refused(sharded):
    shutil.copy(sharded / FIRST, sharded / SECOND)
    assert f"{SECOND} holds 'embed', which the index has in '{FIRST}'" in refusal(sharded)
    (sharded / SECOND).unlink()
    (sharded / SECOND).symlink_to(FIRST)
    assert f"{SECOND} holds 'embed', which the index has in '{FIRST}'" in refusal(sharded)


OUTSIDE = ["../m/" + FIRST, "..", ".", "", "/etc/passwd", "/" + FIRST, "sub/" + FIRST, "..\\" + FIRST, "C:" + FIRST]
NO_NAMES = [FIRST + "\0", "\ud800.safetensors", "\n" + FIRST, None, 3, [FIRST], {"a": FIRST}, [[]] * 99, "x" * 5000]


@pytest.mark.parametrize("name", [*OUTSIDE, *NO_NAMES, "pytorch_model.bin", "config.json", ".safetensors/.."])
def test_an_index_names_files_of_its_folder_and_nothing_else(sharded, name):
    rewrite_index(sharded, lambda m: m.update(head=name))
    message = refusal(sharded)
    assert f"{INDEX} names" in message and "in the same folder" in message


def test_a_shard_name_that_no_file_system_takes_is_refused(sharded):
    rewrite_index(sharded, lambda m: m.update(head="x" * 300 + ".safetensors"))
    assert "name too long" in refusal(sharded)


TWICE = b'{"weight_map":{"a":"%b","a":"%b"}}' % (FIRST.encode(), SECOND.encode())
EMPTY = [b"", b"[]", b"3", b"{}", b'{"weight_map":[]}', b'{"weight_map":{}}', b'{"weight_map":"a"}']


@pytest.mark.parametrize("content", [*EMPTY, b"{", b"\xff", b"[" * 10**6, TWICE])
def test_an_index_that_is_no_index_is_refused(sharded, content):
    (sharded / INDEX).write_bytes(content)
    assert INDEX in refusal(sharded)


def test_two_sets_of_weights_are_refused_and_an_index_of_one_file_is_not(tmp_path):
    save(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(NAMES, SINGLE)}))
    assert_whole(tmp_path)
    shutil.copy(tmp_path / SINGLE, tmp_path / FIRST)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(NAMES, FIRST)}))
    assert f"{SINGLE} and {INDEX}, which does not name it" in refusal(tmp_path)


def relink(path, target):
    path.unlink()
    path.symlink_to(target)


def test_links_stay_in_the_folder(sharded, tmp_path):
    os.rename(sharded / FIRST, sharded / "blob")
    (sharded / FIRST).symlink_to("blob")
    assert_whole(sharded)
    (tmp_path / "linked").symlink_to(sharded)
    assert_whole(tmp_path / "linked")
    os.rename(sharded / "blob", tmp_path / "blob")
    relink(sharded / FIRST, "../blob")
    assert f"{FIRST} is a link that leads out of the folder" in refusal(sharded)
    os.rename(tmp_path / "blob", tmp_path / "m-blob")  # a path that begins as the folder's does
    relink(sharded / FIRST, "../m-blob")
    assert f"{FIRST} is a link that leads out of the folder" in refusal(sharded)
    relink(sharded / FIRST, FIRST)
    assert f"cannot read /{FIRST}" in refusal(sharded)


@pytest.mark.parametrize("name, limit", [(SINGLE, 10**9), (INDEX, 1)])
def test_the_named_files_themselves_stay_in_the_folder(tmp_path, name, limit):
    save(tmp_path / "m", limit)
    os.rename(tmp_path / "m" / name, tmp_path / name)
    (tmp_path / "m" / name).symlink_to(tmp_path / name)
    assert f"{name} is a link that leads out" in refusal(tmp_path / "m")


def test_hugging_face_s_cache_is_links_to_blobs(tmp_path):
    model = tmp_path / "models--plum--7b"
    snapshot = model / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    save(model / "blobs", limit=1)
    for number, path in enumerate(sorted((model / "blobs").iterdir())):
        os.rename(path, path.with_name(f"blob{number}"))
        (snapshot / path.name).symlink_to(f"../../blobs/blob{number}")
    assert_whole(snapshot)
    (tmp_path / "models--other").mkdir()
    os.rename(model / "blobs" / "blob0", tmp_path / "models--other" / "blob0")
    relink(snapshot / FIRST, "../../../models--other/blob0")
    assert f"{FIRST} is a link that leads out" in refusal(snapshot)
    os.rename(tmp_path / "models--other" / "blob0", model / "blobs" / "blob0")
    relink(snapshot / FIRST, "../../blobs/blob0")
    os.rename(model, tmp_path / "renamed")  # such links are followed in that cache alone
    assert "is a link that leads out" in refusal(tmp_path / "renamed" / "snapshots" / "0123abcd")
