"""CUDA beside PyTorch: memory of its caching allocator, its current stream; everything else is the same CUDA runtime."""

from __future__ import annotations

from typing import Any

from rescale.cuda import optional, stream_handle
from rescale.cuda.cuda_python import Buffer, CudaPython
from rescale.errors import BackendError, OutOfMemoryError


class TorchCuda(CudaPython):
    """`rescale.cuda.CudaApi` whose device memory counts as PyTorch's and is reused by it.

    PyTorch's streams and events are handles of the same primary context, so that only memory needs PyTorch's own calls.
    """

    def __init__(self, device: int = 0) -> None:
        """Open a device.

        Raises:
            BackendError: no such device, or a PyTorch without CUDA.
            MissingExtraError: PyTorch or cuda-python is not installed.
        """
        self._torch = optional("torch", "torch")
        if not self._torch.cuda.is_available():
            raise BackendError(f"torch {self._torch.__version__}: no CUDA device, or a build for the CPU")
        super().__init__(device)
        # The allocator reuses a block in the order of the stream that it was asked for. No work is ever put into this one: a
        # block of it is free of earlier work, as `allocate` without a stream promises.
        with self.current():
            self._idle = self.create_stream()

    @property
    def name(self) -> str:
        return f"torch {self._torch.__version__}"

    def allocate(self, nbytes: int, stream: Any = None) -> Buffer:
        order = self._idle if stream is None else stream
        try:
            return Buffer(int(self._torch.cuda.caching_allocator_alloc(nbytes, self.device, order)), nbytes, stream)
        except self._torch.OutOfMemoryError as e:
            raise OutOfMemoryError(f"torch: {e}") from None
        except RuntimeError as e:
            raise BackendError(f"torch: {e}") from None

    def free(self, buffer: Any) -> None:
        self._torch.cuda.caching_allocator_delete(buffer.pointer)

    def caller_stream(self, stream: Any) -> int:
        return stream_handle(self._torch.cuda.current_stream(self.device) if stream is None else stream)
