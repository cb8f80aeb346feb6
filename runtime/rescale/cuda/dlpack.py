"""DLPack: a device array of ours as a capsule that PyTorch, CuPy, JAX and numpy take without a copy.

The structures are those of dlpack.h 0.8, which every consumer reads.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

_NAME = b"dltensor"
_CODES = {"i": 0, "u": 1, "f": 2}


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, _Destructor)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)

_exported: dict[int, tuple[Any, ...]] = {}
"""What capsules point to, by address, until their consumers are done."""


def capsule(owner: Any, pointer: int, shape: tuple[int, ...], dtype: npt.DTypeLike, device: tuple[int, int]) -> Any:
    """A ``dltensor`` capsule of C-contiguous memory.

    Args:
        owner: kept alive until the consumer is done.
        pointer: address on the device.
        shape: of the array.
        dtype: integer or float.
        device: DLPack's type and ordinal.
    """
    kind = np.dtype(dtype)
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    steps = (ctypes.c_int64 * len(shape))(*(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))))
    managed = _Managed()
    managed.tensor = _Tensor(
        pointer, _Device(*device), len(shape), _DataType(_CODES[kind.kind], 8 * kind.itemsize, 1), sizes, steps, 0
    )
    managed.deleter = _delete
    address = ctypes.addressof(managed)
    _exported[address] = (owner, managed, sizes, steps)
    return _new(address, _NAME, _destroy)


def _deleted(managed: Any) -> None:
    """Called by the consumer when it is done, from any thread."""
    _exported.pop(ctypes.addressof(managed.contents), None)


def _destroyed(capsule: int) -> None:
    """Called when a capsule dies; a consumer has renamed the one that it took."""
    if _is_valid(capsule, _NAME):
        _exported.pop(_pointer(capsule, _NAME), None)


_delete, _destroy = _Deleter(_deleted), _Destructor(_destroyed)
