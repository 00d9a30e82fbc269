"""ImageNet16-120: its files are read to the number, and nothing that a file asks for is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darts_bio.config import SearchConfig
from darts_bio.data.datasets import load_data
from darts_bio.data.imagenet16 import TEST_FILES, TRAIN_FILES
from darts_bio.errors import InputError
from darts_bio.training.search import Search

NAME = "imagenet16-120"
LABELS = [1, 120, 121, 1000]


def content(seed: int, labels: Any = LABELS) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 768), dtype=np.uint8)
    return {"data": pixels, "labels": labels, "mean": np.full(768, 127.5)}


def as_python_2_wrote_it(value: dict[str, Any]) -> bytes:
    """Protocol 2 with text and bytes alike as short or long byte strings, under the names of the
    NumPy of its time.
    """

    def text(raw: bytes) -> bytes:
        return (
            b"U" + bytes([len(raw)]) + raw
            if len(raw) < 256
            else b"T" + len(raw).to_bytes(4, "little") + raw
        )

    def number(n: int) -> bytes:
        return b"J" + n.to_bytes(4, "little", signed=True)

    array = value["data"]
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    made = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n("
        + number(0)
        + b"t"
        + text(b"b")
        + b"tR"
    )
    shape = b"(" + b"".join(map(number, array.shape)) + b"t"
    state = b"(" + number(1) + shape + dtype + b"\x89" + text(array.tobytes()) + b"t"
    labels = b"](" + b"".join(map(number, value["labels"])) + b"e"
    return b"\x80\x02}(" + text(b"data") + made + state + b"b" + text(b"labels") + labels + b"u."


def with_protocol(protocol: int) -> Callable[[dict[str, Any]], bytes]:
    return lambda value: pickle.dumps(value, protocol)


def of_the_old_numpy(value: dict[str, Any]) -> bytes:
    """Protocol 2 keeps names as lines, which can be exchanged."""
    return pickle.dumps(value, 2).replace(b"numpy._core.", b"numpy.core.")


def write(
    folder: Path, dumps: Callable[[dict[str, Any]], bytes] = pickle.dumps, labels: Any = LABELS
) -> None:
    """All eleven files, of as many images as labels each."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate((*TRAIN_FILES, *TEST_FILES)):
        (folder / name).write_bytes(dumps(content(seed, labels)))


@pytest.mark.parametrize("subfolder", ["", "ImageNet16"])
@pytest.mark.parametrize(
    "dumps",
    [
        *map(with_protocol, range(pickle.HIGHEST_PROTOCOL + 1)),
        of_the_old_numpy,
        as_python_2_wrote_it,
    ],
    ids=[*(f"protocol-{p}" for p in range(pickle.HIGHEST_PROTOCOL + 1)), "old-numpy", "python-2"],
)
def test_the_first_120_classes_are_kept(
    tmp_path: Path, dumps: Callable[[dict[str, Any]], bytes], subfolder: str
) -> None:
    write(tmp_path / subfolder, dumps)
    data = load_data(NAME, str(tmp_path))
    assert data.train.labels.tolist() == [0, 119] * 10
    assert data.test.labels.tolist() == [0, 119]
    assert data.classes == tuple(map(str, range(1, 121)))
    assert (data.in_channels, data.image_size) == (3, (16, 16))
    expected = np.concatenate([content(seed)["data"][:2] for seed in range(11)]).reshape(
        -1, 3, 16, 16
    )
    assert torch.equal(torch.cat([data.train.images, data.test.images]), torch.from_numpy(expected))
    assert data.train.images.is_contiguous()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_labels_of_numpy_and_arrays_by_columns(tmp_path: Path, protocol: int) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    write(plain)
    for labels in (
        np.array(LABELS, ">i4"),
        [np.int64(label) for label in LABELS],
        np.array(LABELS, np.uint16),
    ):
        write(
            other,
            lambda value: pickle.dumps(
                {**value, "data": np.asfortranarray(value["data"])}, protocol
            ),
            labels,
        )
        assert load_data(NAME, str(other)).identity() == load_data(NAME, str(plain)).identity()


class Call:
    """Pickled, it asks that `function(*arguments)` be called."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", [TRAIN_FILES[3], TEST_FILES[0]])
def test_what_a_file_asks_for_is_not_executed(tmp_path: Path, name: str, protocol: int) -> None:
    write(tmp_path)
    ran = tmp_path / "ran"
    for call in (
        Call(os.system, f"touch {ran}"),
        Call(eval, f"open({str(ran)!r}, 'w')"),
        Call(os.mkdir, str(ran)),
    ):
        (tmp_path / name).write_bytes(pickle.dumps({**content(0), "more": [call]}, protocol))
        with pytest.raises(
            InputError, match=rf"{name}: expected .*asks for '\w+\.\w+', which was not executed"
        ):
            load_data(NAME, str(tmp_path))
        assert not ran.exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert ran.exists()  # the file does what it is meant to where nobody stops it


def test_names_that_are_admitted_are_not_called_either(tmp_path: Path) -> None:
    """Not even NumPy's: an array is made of what was noted, and only if it is one of numbers."""
    write(tmp_path)
    by_extension = b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR."
    for raw in (by_extension, b"\x80\x02cnumpy\ndtype\n(]tR}b.", b"\x80\x02c_codecs\nencode\n."):
        (tmp_path / "val_data").write_bytes(raw)
        with pytest.raises(
            InputError,
            match=r"val_data: expected a dict with the keys 'data' and 'labels', found \w+",
        ):
            load_data(NAME, str(tmp_path))


def dumped(**changes: Any) -> bytes:
    return pickle.dumps({**content(0), **changes})


class Odd:
    pass


WHOLE = dumped()
PIXELS = content(0)["data"]
KEYS = "a dict with the keys 'data' and 'labels'"


@pytest.mark.parametrize(
    ("raw", "expected", "found"),
    [
        pytest.param(b"", "a whole pickle", r"a damaged file (Ran out of input)", id="empty"),
        pytest.param(WHOLE[:-1], "a whole pickle", "a damaged file (", id="without-its-end"),
        pytest.param(
            WHOLE[:999],
            "a whole pickle",
            "a damaged file (pickle data was truncated",
            id="truncated",
        ),
        pytest.param(b"<html>404</html>", "a whole pickle", "a damaged file (", id="a-page"),
        pytest.param(b"\x80\x02K\x01Q.", "a whole pickle", "a damaged file (", id="persistent"),
        pytest.param(b"\x80\x02]]\x85}s.", "a whole pickle", "a damaged file (", id="nonsense"),
        pytest.param(
            b"\x80\x02B\xff\xff\xff\x7fabc.", "a whole pickle", "a damaged file (", id="length"
        ),
        pytest.param(pickle.dumps([1]), KEYS, "list", id="a-list"),
        pytest.param(pickle.dumps({}), KEYS, "dict", id="no-keys"),
        pytest.param(
            pickle.dumps({"data": PIXELS}), KEYS, "a dict with the keys ['data']", id="no-labels"
        ),
        pytest.param(
            dumped(data=None), "arrays of numbers", "NoneType where an array", id="no-array"
        ),
        pytest.param(
            dumped(data=PIXELS.tolist()), "arrays of numbers", "list where an array", id="lists"
        ),
        pytest.param(
            dumped(data=PIXELS.astype(object)),
            "arrays of numbers",
            "an array of dtype 'O8'",
            id="objects",
        ),
        pytest.param(
            dumped(data=np.zeros(4, [("a", "u1")])),
            "arrays of numbers",
            "an array of dtype 'V1'",
            id="fields",
        ),
        pytest.param(
            dumped(data=np.array(["x"])), "arrays of numbers", "an array of dtype 'U1'", id="texts"
        ),
        pytest.param(
            dumped(data=PIXELS.astype(float)),
            "data of uint8 (N, 768)",
            "float64 (4, 768)",
            id="floats",
        ),
        pytest.param(
            dumped(data=PIXELS.astype(np.int8)),
            "data of uint8 (N, 768)",
            "int8 (4, 768)",
            id="signed",
        ),
        pytest.param(
            dumped(data=PIXELS.reshape(4, 3, 16, 16)),
            "data of uint8 (N, 768)",
            "uint8 (4, 3, 16, 16)",
            id="shape",
        ),
        pytest.param(
            dumped(data=PIXELS[:, :192]), "data of uint8 (N, 768)", "uint8 (4, 192)", id="smaller"
        ),
        pytest.param(
            dumped(labels=LABELS[:3]),
            "4 labels, one for each image",
            "labels of shape (3,)",
            id="few",
        ),
        pytest.param(
            dumped(labels=np.ones((4, 1), int)),
            "4 labels, one for each image",
            "labels of shape (4, 1)",
            id="column",
        ),
        pytest.param(
            dumped(labels=[0, 1, 2, 3]), "labels from 1 to 1000", "labels from 0 to 3", id="zero"
        ),
        pytest.param(
            dumped(labels=[1, 1, 1, 1001]),
            "labels from 1 to 1000",
            "labels from 1 to 1001",
            id="many",
        ),
        pytest.param(
            dumped(labels=np.full(4, 2**64 - 1, np.uint64)),
            "labels from 1 to 1000",
            "labels from -1 to -1",
            id="wraps",
        ),
        pytest.param(dumped(labels=[1, 1, 1, 2**70]), "arrays of numbers", "", id="huge"),
        pytest.param(
            dumped(labels=["1"] * 4), "arrays of numbers", "str among the labels", id="text-labels"
        ),
        pytest.param(
            dumped(labels=[True] * 4),
            "arrays of numbers",
            "bool among the labels",
            id="bool-labels",
        ),
        pytest.param(
            dumped(labels=[1.0] * 4),
            "arrays of numbers",
            "float among the labels",
            id="float-labels",
        ),
        pytest.param(
            dumped(labels=[np.float32(1)] * 4),
            "arrays of numbers",
            "scalar(...) among the labels",
            id="float-scalars",
        ),
        pytest.param(
            dumped(labels=np.ones(4)),
            "arrays of numbers",
            "labels of dtype float64",
            id="float-array",
        ),
        pytest.param(
            dumped(labels={1, 2}), "arrays of numbers", "set where an array belongs", id="a-set"
        ),
        pytest.param(
            dumped(data=Odd()), "arrays of numbers alone", "a pickle that asks for '", id="a-class"
        ),
        pytest.param(
            dumped(data=torch.ones(2)),
            "arrays of numbers alone",
            "a pickle that asks for '",
            id="a-tensor",
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, raw: bytes, expected: str, found: str) -> None:
    write(tmp_path)
    path = tmp_path / "train_data_batch_7"
    path.write_bytes(raw)
    with pytest.raises(InputError) as caught:
        load_data(NAME, str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{path}: expected {expected}, found {found}")
    assert message.endswith(
        "; replace it with that of NAS-Bench-201's ImageNet16 (github.com/D-X-Y/NAS-Bench-201)"
    )
    assert "\n" not in message


@pytest.mark.parametrize(
    "dumps", [with_protocol(2), with_protocol(5), as_python_2_wrote_it], ids=["2", "5", "python-2"]
)
def test_any_damage_is_an_input_error_or_other_numbers(
    tmp_path: Path, dumps: Callable[[dict[str, Any]], bytes]
) -> None:
    """Bytes of the part that is no pixel overwritten, one at a time, and the file cut off
    anywhere.
    """
    write(tmp_path)
    whole = dumps({"data": np.full((2, 768), 65, np.uint8), "labels": [1, 2]})
    frame = [i for i in range(len(whole)) if whole[i : i + 9] != b"A" * 9]
    damaged = [whole[:i] for i in frame[::3]]
    damaged += [
        whole[:i] + bytes([value]) + whole[i + 1 :] for i in frame for value in (0, 40, 82, 98, 255)
    ]
    refused = 0
    for raw in damaged:
        (tmp_path / "val_data").write_bytes(raw)
        try:
            load_data(NAME, str(tmp_path))
        except InputError:
            refused += 1
    assert refused > len(damaged) / 2


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ", ".join(TRAIN_FILES[:3]) + f", ... {len(TRAIN_FILES) + len(TEST_FILES)} in all"
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError) as caught:
            load_data(NAME, str(folder))
        assert f"found no {everything} in {folder} or {folder / 'ImageNet16'}; download" in str(
            caught.value
        )
        assert "github.com/D-X-Y/NAS-Bench-201" in str(caught.value)
        assert "give --data-dir DIR" in str(caught.value)
    for folder in (tmp_path / "ImageNet16", tmp_path):
        write(folder)
        for name in ("train_data_batch_10", "val_data"):
            (folder / name).unlink()
        with pytest.raises(
            InputError, match=f"found no train_data_batch_10, val_data in {folder}; download"
        ):
            load_data(NAME, str(folder))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="found no .* in data or data/ImageNet16; download"):
        load_data(NAME)
    with pytest.raises(InputError, match=f"--data-dir a+: {NAME} cannot be read"):
        load_data(NAME, "a" * 300)


def test_at_least_one_image_of_the_120_classes(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train_data_batch_2").write_bytes(pickle.dumps(content(0, [121, 1000])))
    (tmp_path / "train_data_batch_3").write_bytes(pickle.dumps(content(0, [])))
    assert len(load_data(NAME, str(tmp_path)).train) == 16
    (tmp_path / "val_data").write_bytes(pickle.dumps(content(0, [121])))
    with pytest.raises(
        InputError, match="expected an image with a label from 1 to 120 in val_data, found none"
    ):
        load_data(NAME, str(tmp_path))


def test_it_keeps_its_size(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"--image-size: {NAME} keeps its own size; leave the option out"
    ):
        load_data(NAME, str(tmp_path), image_size=32)


def test_a_short_search(tmp_path: Path) -> None:
    write(tmp_path)
    config = SearchConfig(
        dataset=NAME,
        data_dir=str(tmp_path),
        space="darts(nodes=1, operations=(skip_connect, sep_conv_3x3))",
        rules=("fa",),
        channels=2,
        layers=3,
        batch_size=8,
        epochs=1,
    )
    search = Search(config, load_data(config.dataset, config.data_dir), torch.device("cpu"))
    search.begin_epoch(0)
    search.step(0)
    assert search.genotype().cells
