"""Arrays of the device as other libraries see them, and theirs as we do: DLPack and the array interface."""

from __future__ import annotations

import gc
import types

import numpy as np
import pytest

from rescale.cuda import CaptureError
from rescale.cuda.arrays import DeviceArray, to_device, view
from rescale.cuda.dlpack import _exported, capsule
from rescale.cuda.fake import FakeCuda
from rescale.errors import BackendError


@pytest.mark.parametrize("shape", [(3, 4), (1,), (2, 3, 4, 5), (7, 1, 2)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "int64"])
def test_capsules_are_read_by_numpy_and_torch(shape, dtype):
    torch = pytest.importorskip("torch")
    want = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)

    class Owner:
        array = want.copy()

        def __dlpack_device__(self):
            return 1, 0

        def __dlpack__(self, **options):
            return capsule(self, self.array.ctypes.data, shape, dtype, (1, 0))

    before = len(_exported)
    owner = Owner()
    for read in (np.from_dlpack, torch.from_dlpack):
        got = read(owner)
        assert np.array_equal(np.asarray(got), want)
        assert len(_exported) == before + 1
        del got
        assert len(_exported) == before
    unused = owner.__dlpack__()
    assert len(_exported) == before + 1
    del unused
    assert len(_exported) == before


def test_arrays_tell_the_array_interface_and_are_freed_once():
    api = FakeCuda()
    array = to_device(api, np.arange(12, dtype=np.float32).reshape(3, 4))
    table = array.__cuda_array_interface__
    assert table == {"shape": (3, 4), "typestr": "<f4", "data": (array.pointer, False), "version": 3, "strides": None, "stream": 1}
    assert array.nbytes == 48
    for options in ({"copy": True}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError):
            array.__dlpack__(**options)
    array.free()
    array.free()
    for use in (array.to_host, array.__dlpack__, lambda: array.__cuda_array_interface__):
        with pytest.raises(BackendError, match=r"used after free\(\)"):
            use()
    assert api.alive()["device"] == 0


def test_a_consumer_in_another_stream_is_put_in_order_and_waited_for_at_the_end():
    api = FakeCuda()
    array = to_device(api, np.zeros(100, np.uint8))
    with api.current():
        other = api.create_stream()
        taken = np.from_dlpack(
            types.SimpleNamespace(__dlpack__=lambda **o: array.__dlpack__(stream=other), __dlpack_device__=lambda: (1, 0))
        )
        api.kernel("read", other, [(array.pointer, array.pointer + 100)], [], lambda: None)
        del taken
    gc.collect()
    array.free()
    assert api.executed[-1] == "read"
    with api.current():
        api.destroy_stream(other)
    assert api.violations == []


def test_an_array_that_a_capture_forbids_to_free_is_freed_later():
    api = FakeCuda()
    array = to_device(api, np.arange(9, dtype=np.uint8))
    with api.current():
        array.__dlpack__(stream=api.create_stream())
    for call in ("synchronize", "free"):
        api.failures[call] = CaptureError("900")
        with pytest.raises(CaptureError):
            array.free()
        assert array.to_host()[8] == 8
    api.failures["synchronize"] = CaptureError("900")
    del array
    gc.collect()
    assert api.used() == 9
    api.failures["synchronize"] = CaptureError("900")  # the capture goes on
    first = to_device(api, np.zeros(3, np.uint8))
    assert api.used() == 9 + 3
    second = to_device(api, np.zeros(3, np.uint8))
    assert api.used() == 3 + 3
    first.free()
    second.free()
    assert api.alive()["device"] == 0
    assert api.violations == []


def test_pytorch_tensors_and_numpy_arrays_come_in_by_dlpack():
    torch = pytest.importorskip("torch")
    api = FakeCuda()  # whose device is the host
    raw = np.zeros(1024 + 256, np.uint8)
    aligned = raw[-raw.ctypes.data % 256 :][:1024]
    for value in (aligned.reshape(4, 256), torch.from_numpy(aligned.reshape(4, 256))):
        found = view(api, value, "x", 0)
        assert (found.pointer, found.shape, found.dtype, found.readonly) == (aligned.ctypes.data, (4, 256), np.uint8, False)
    with pytest.raises(BackendError, match=r"x: shape \(256, 4\) with strides \(1, 256\) is not C-contiguous"):
        view(api, torch.from_numpy(aligned.reshape(4, 256)).T, "x", 0)
    api.dlpack_device = (2, 0)
    with pytest.raises(BackendError, match=r"x: on DLPack device \(1, 0\), wanted is \(2, 0\): copy it there"):
        view(api, torch.zeros(4), "x", 0)


def test_a_device_array_of_another_device_is_refused():
    one, other = FakeCuda(), FakeCuda()
    other.dlpack_device = (1, 1)
    array = to_device(one, np.zeros(3, np.uint8))
    assert isinstance(array, DeviceArray)
    with pytest.raises(BackendError, match=r"x: on DLPack device \(1, 0\), wanted is \(1, 1\)"):
        view(other, array, "x", 0)
