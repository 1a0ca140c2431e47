"""Write gzip files (RFC 1952) without name and time, so that the same voxels give the same bytes."""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
import SimpleITK as sitk

Buffer = bytes | bytearray | memoryview
_HEADER = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"
# Bytes that are compressed together, whatever the number of threads.
_BLOCK = 2**22
_MOST_THREADS = 8
# What ends a compressed stream: a last block without content.
_END = b"\x03\x00"


class Compressor(Protocol):
    """What :func:`zlib.compressobj` returns."""

    def compress(self, data: Buffer, /) -> bytes: ...

    def flush(self, mode: int = ..., /) -> bytes: ...


@dataclass(frozen=True)
class Method:
    """How bytes are compressed: level and strategy of zlib.

    Python's ``gzip`` cannot choose the strategy of the search for repeated bytes. Interpolated floating-point numbers
    contain only runs of equal bytes, and searching for other repeats would take most of the time.
    """

    level: int
    strategy: int = zlib.Z_DEFAULT_STRATEGY

    def compressor(self) -> Compressor:
        """Return a compressor of a bare stream, without header."""
        return zlib.compressobj(self.level, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, self.strategy)


PLAIN = Method(4)
# Takes a quarter to a third less time than PLAIN for the integers of a CT, whose files grow by 2 to 7 %.
FAST = Method(1)
NOISY = Method(1, zlib.Z_RLE)
STORED = Method(0)


def write_gzip(
    raw: BinaryIO,
    pieces: Iterable[bytes | np.ndarray],
    *,
    noisy: bool = False,
    stored: bool = False,
    blocks: bool = False,
) -> None:
    """Write bytes and arrays, one after the other, as a gzip file.

    Args:
        raw: where to write.
        pieces, noisy, stored: see :func:`DRDMLib.io.nifti.write_nifti`.
        blocks: compress faster, and on several threads. The bytes of the file are others than without, but the same for
            any number of threads. Not for files whose digests are in records that were made without it.
    """
    method = STORED if stored else NOISY if noisy else FAST if blocks else PLAIN
    stream: Writer = (Blocks if blocks else Stream)(raw, method)
    try:
        for piece in pieces:
            stream.write(np.ascontiguousarray(piece).data if isinstance(piece, np.ndarray) else piece)
        stream.finish()
    finally:
        stream.cancel()


class Writer(Protocol):
    """Writer of a gzip file to a stream that stays open."""

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; of a memory view, those of its array."""

    def finish(self) -> None:
        """Write the end of the file."""

    def cancel(self) -> None:
        """Stop, because the file will not be used."""


class Stream:
    """Compresses all bytes as one stream, in the calling thread."""

    def __init__(self, raw: BinaryIO, method: Method) -> None:
        self._raw, self._checksum, self._size = raw, 0, 0
        self._deflate = method.compressor()
        raw.write(_HEADER)

    def write(self, data: bytes | memoryview) -> None:
        self._checksum = zlib.crc32(data, self._checksum)
        self._size += memoryview(data).nbytes
        self._raw.write(self._deflate.compress(data))

    def finish(self) -> None:
        self._raw.write(self._deflate.flush())
        self._raw.write(struct.pack("<LL", self._checksum, self._size & 0xFFFFFFFF))

    def cancel(self) -> None:
        pass


class Blocks:
    """Compresses blocks of equal size on several threads, while the caller makes the next bytes.

    The blocks make up one stream, as those of the program pigz, which every reader of gzip takes. They are the same for
    any number of threads; it is that of ITK, so that who limits the one limits the other, too.
    """

    def __init__(self, raw: BinaryIO, method: Method) -> None:
        self._raw, self._method = raw, method
        self._checksum, self._size = 0, 0
        self._rest = bytearray()
        threads = min(_MOST_THREADS, sitk.ProcessObject.GetGlobalDefaultNumberOfThreads())
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._waiting: deque[Future[bytes]] = deque()
        self._most_waiting = 2 * threads
        raw.write(_HEADER)

    def write(self, data: bytes | memoryview) -> None:
        data = memoryview(data)
        if data.nbytes == 0:
            return
        data = data.cast("B")
        self._checksum = zlib.crc32(data, self._checksum)
        self._size += data.nbytes
        start = 0
        while start < data.nbytes:
            stop = start + _BLOCK - len(self._rest)
            self._rest += data[start:stop]
            start = stop
            if len(self._rest) == _BLOCK:
                self._compress()

    def finish(self) -> None:
        if self._rest:
            self._compress()
        self._write(0)
        if self._pool is not None:
            self._pool.shutdown()
        self._raw.write(_END + struct.pack("<LL", self._checksum, self._size & 0xFFFFFFFF))

    def cancel(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _compress(self) -> None:
        block, self._rest = self._rest, bytearray()
        if self._pool is None:
            self._raw.write(_compressed(block, self._method))
            return
        self._waiting.append(self._pool.submit(_compressed, block, self._method))
        self._write(self._most_waiting)

    def _write(self, most: int) -> None:
        """Write what is compressed, until at most ``most`` blocks wait."""
        while len(self._waiting) > most:
            self._raw.write(self._waiting.popleft().result())


def _compressed(block: bytearray, method: Method) -> bytes:
    """Compress a block to whole bytes, which can be followed by others."""
    deflate = method.compressor()
    return deflate.compress(block) + deflate.flush(zlib.Z_SYNC_FLUSH)
