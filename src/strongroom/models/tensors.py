"""Tensors as safetensors keeps them: each whole, in a row, and nothing of the memory around it.

The library writes the memory that an array begins in, and does not ask for its strides, its mask, or whether PyTorch
has yet to take its conjugate or its negative. What would come back as something else is refused, by its name.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from strongroom.errors import InputError

__all__ = ["dense", "library_of"]

_TYPES = {
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16"),
    *("float32", "float64", "complex64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    "float8_e8m0fnu",
}


def library_of(value: object) -> str:
    """Return `numpy` or `torch`, of which the class of `value` is or is derived, or ""."""
    # By the names of its classes, so that nothing is imported that the program does not use.
    packages = [cls.__module__.split(".")[0] for cls in type(value).__mro__]
    return next((package for package in packages if package in ("numpy", "torch")), "")


def dense(state: Mapping[Any, Any]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return the library, the tensors to be written, and of others the name of the one that they are.

    Args:
        state: NumPy's arrays and numbers, or PyTorch's tensors; not both.

    Raises:
        InputError: One of them is no such thing; says which.
    """
    for name, value in state.items():
        if not isinstance(name, str) or name == "__metadata__" or name.encode(errors="ignore").decode() != name:
            raise InputError(f"{name!r:.80} is no name of a tensor in a model", hint="call it by a text of your own")
        if not library_of(value):
            _refuse(name, f"a {_class(value)}", "np.array(value) or torch.tensor(value), or among parameters=")
    used = {library_of(value) for value in state.values()} or {"torch"}  # a module may have none
    if len(used) > 1:
        raise InputError("the model holds both NumPy's and PyTorch's", hint="torch.from_numpy(array), tensor.numpy()")
    if used == {"numpy"}:
        return "numpy", {name: _array(name, value) for name, value in state.items()}, {}
    found, same, seen = dict[str, Any](), dict[str, str](), dict[object, str]()
    for name, value in state.items():
        tensor = _tensor(name, value)
        it = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        twin = (
            seen.setdefault((*it, tensor.is_conj(), tensor.is_neg()), name)
            if tensor.numel() and tensor.data_ptr()
            else name
        )
        if twin == name:
            found[name] = tensor.resolve_conj().resolve_neg().contiguous()
        else:
            same[name] = twin
    _apart(found)
    return "torch", found, same


def _array(name: str, value: Any) -> Any:
    np = sys.modules["numpy"]
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if type(value) not in (np.ndarray, np.memmap):  # another may be more than its numbers: masked, or with a unit
        _refuse(name, f"a {_class(value)}", "np.asarray(value), if its numbers are all of it")
    _check_type(name, value.dtype.name, 'array.astype("float32")')
    return np.asarray(value, value.dtype.newbyteorder("="), order="C")


def _tensor(name: str, value: Any) -> Any:
    torch = sys.modules["torch"]
    tensor = value.detach() if isinstance(value, torch.Tensor) else value
    if type(tensor) is not torch.Tensor:  # another may be more than its numbers: masked, or a part of one elsewhere
        _refuse(name, f"a {_class(value)}", "tensor.as_subclass(torch.Tensor), if its numbers are all of it")
    _check_type(name, str(tensor.dtype).removeprefix("torch."), "tensor.float()")
    if tensor.layout is not torch.strided or tensor.is_nested:
        _refuse(name, "sparse or nested", "tensor.to_dense()")
    if tensor.is_meta:
        _refuse(name, "on no device, without values", "the module with its values loaded")
    return tensor


def _apart(found: dict[str, Any]) -> None:
    # The library refuses tensors that overlap, as a slice does what it was cut from.
    end = 0
    for name in sorted(found, key=lambda one: int(found[one].data_ptr())):
        start, size = found[name].data_ptr(), found[name].nbytes
        if start < end and size:
            found[name] = found[name].clone()
        end = max(end, start + size)


def _check_type(name: str, kind: str, hint: str) -> None:
    if kind not in _TYPES:
        _refuse(name, f"of type {kind}", hint)


def _refuse(name: str, what: str, hint: str) -> NoReturn:
    raise InputError(f"the model's {name!r:.80} is {what}, which safetensors does not hold", hint=f"save {hint}")


def _class(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__:.80}"
