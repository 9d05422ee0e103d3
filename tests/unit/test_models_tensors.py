"""Arrays are saved as they are read, with nothing of the memory around them; what cannot be is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from strongroom import models
from strongroom.errors import InputError
from strongroom.models import straight

NUMBERS = np.arange(24, dtype=np.float32).reshape(4, 6)
LAID_OUT = {
    "transposed": NUMBERS.T,
    "strided": NUMBERS[:, ::2],
    "backwards": NUMBERS[::-1],
    "Fortran": np.asfortranarray(NUMBERS),
    "axes moved": np.moveaxis(NUMBERS.reshape(2, 3, 4), 0, 2),
    "broadcast": np.broadcast_to(np.float32(3), (2, 2)),
    "view": NUMBERS[1:3],
    "diagonal": np.arange(16.0).reshape(4, 4).diagonal(),
    "other order": NUMBERS.astype(">f4").T,
    "no dimension": np.array(3.0),
    "scalar": np.float64(0.5),
    "boolean": np.bool_(True),
    "empty": np.zeros((0, 3)),
    "of a record": np.zeros(3, [("a", "f4"), ("b", "i2")])["b"],
    "complex": np.array([1j], np.complex64),
    "read-only": np.frombuffer(b"abcd", np.uint8),
}


@pytest.mark.parametrize("in_an_enclave", [False, True])
def test_arrays_come_back_however_they_lie_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_an_enclave: bool
) -> None:
    monkeypatch.setattr(straight, "_WORK", tmp_path)
    monkeypatch.setattr(straight, "_PLACE", tmp_path / ".sealed")
    (tmp_path / ".sealed/m").mkdir(parents=True)
    models.save(LAID_OUT, tmp_path / "m", straight=in_an_enclave)
    assert (tmp_path / "m/model.safetensors").is_symlink() == in_an_enclave
    loaded = models.load(tmp_path / "m")
    assert set(loaded) == set(LAID_OUT)
    for name, value in LAID_OUT.items():
        assert loaded[name].shape == np.shape(value), name
        assert loaded[name].dtype == value.dtype.newbyteorder("="), name
        assert np.array_equal(loaded[name], value), name


def test_T361_no_memory_beside_an_array_is_saved(tmp_path: Path) -> None:
    table = np.stack([np.zeros(8), np.full(8, 7.25)])
    models.save({"column": table.T[:, 0], "strided": table.T.copy()[:, 0], "row": table[0]}, tmp_path)
    assert np.float64(7.25).tobytes() not in (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"a": np.array(["x"])}, "'a' is of type str32"),
        ({"a": np.array([b"x"])}, "'a' is of type bytes8"),
        ({"a": np.array([None])}, "'a' is of type object"),
        ({"a": np.zeros(1, "M8[s]")}, r"'a' is of type datetime64\[s\]"),
        ({"a": np.zeros(1, [("b", "f4")])}, "'a' is of type void32"),
        ({"a": np.zeros(1, complex)}, "'a' is of type complex128"),
        ({"a": np.zeros(1, np.longdouble)}, "'a' is of type float128"),
        ({"a": np.str_("x")}, "'a' is of type str32"),
        ({"a": np.ma.masked_array([1.0, 2.0], [True, False])}, "'a' is a numpy.ma.MaskedArray"),
        ({"a": np.ones(2), "lr": 0.1}, "'lr' is a builtins.float"),
        ({"a": np.ones(2), "b": [1.0]}, "'b' is a builtins.list"),
        ({"a": np.dtype("f4")}, "'a' is a numpy"),
        ({1: np.ones(2)}, "1 is no name"),
        ({("a", 1): np.ones(2)}, r"\('a', 1\) is no name"),
        ({"__metadata__": np.ones(2)}, "'__metadata__' is no name"),
        ({"\ud800": np.ones(2)}, "is no name"),
        ({"a": np.ones(2), "t": type("Tensor", (), {"__module__": "torch"})()}, "both NumPy's and PyTorch's"),
    ],
)
def test_what_a_model_cannot_hold_is_named(tmp_path: Path, model: dict[object, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        models.save(model, tmp_path)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_the_same_come_back_under_each_name(tmp_path: Path) -> None:
    models.save({"a": np.ones(2)}, tmp_path)
    said = {"strongroom.same:b": "a", "strongroom.same:a": "b", "format": "pt", "c": "a"}  # the last is another's
    save_file({"a": np.ones(2)}, tmp_path / "model.safetensors", said)
    assert {name: value.tolist() for name, value in models.load(tmp_path).items()} == {"a": [1, 1], "b": [1, 1]}


@pytest.mark.parametrize("raw", [b"", b"x" * 9, b"\xff" * 16, b"\x02\0\0\0\0\0\0\0{}more"])
def test_files_that_are_no_model(tmp_path: Path, raw: bytes) -> None:
    models.save({"a": np.ones(2)}, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        models.load(tmp_path)
