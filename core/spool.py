"""Long sequences: in memory while they are short, in a file of this process's own once they are not."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import shutil
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar, overload

from core import columns
from core.problem import Problem
from core.runs import home, make_private_folder

if TYPE_CHECKING:
    import pyarrow

T = TypeVar("T")

IN_MEMORY = 64 * 1024**2
"""How much of a sequence is kept in memory (bytes, roughly); one that grows larger lies in a file."""

BLOCK, BLOCK_BYTES = 256, 16 * 1024**2
"""Things of a file that are written and unpacked together, and how much of memory they may take (bytes, roughly)."""


_LET_GO_EVERY = 50_000


def open_nameless() -> IO[bytes]:
    """A file to write and read that nobody else can open, and that is gone when this process ends."""
    folder = home() / "spool"
    make_private_folder(folder)
    return tempfile.TemporaryFile(dir=folder)


@contextlib.contextmanager
def full_disk_told() -> Iterator[None]:
    """A disk without room is said in words: a Problem."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(home()).free / 1e6
        raise Problem(
            "The data does not fit onto the disk: {error}.", "{free:.0f} MB are free in {folder}.",
            "Make room, or let ATELIER_HOME name a folder on a larger disk.",
            error=error.strerror or error, free=free, folder=home(),
        ) from None  # fmt: skip


def _as_batch(rows: Sequence[Mapping[str, Any]], schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    import pyarrow

    if set(schema.types) != {pyarrow.binary()}:
        return pyarrow.RecordBatch.from_pylist(rows, schema=schema)
    table = [columns.of_bytes([row[name] for row in rows], pyarrow.binary()) for name in schema.names]
    return pyarrow.RecordBatch.from_arrays(table, schema=schema)


class Spool(Sequence[T], Generic[T]):
    """Things of one kind in the order in which they were appended; once they are read, none can be appended any more.

    The file has no name that anybody else could open, and goes when the process ends, however it ends. It is mapped into
    memory, so that the system may take its pages back whenever it needs the room.

    Args:
        schema: makes the columns of one thing, when they are needed.
        pack: a thing as a row of these columns.
        unpack: the inverse.
        weigh: how many bytes a thing takes in memory, roughly.
        written: is given the things that were just written and the rows that they are, in their order; then nothing waits
            in memory for others.
    """

    def __init__(
        self,
        schema: Callable[[], pyarrow.Schema],
        pack: Callable[[T], Mapping[str, Any]],
        unpack: Callable[[Mapping[str, Any]], T],
        weigh: Callable[[T], int],
        written: Callable[[Sequence[T], Sequence[Mapping[str, Any]]], None] | None = None,
    ):
        self._written = written
        self._weigh, self._weight = weigh, 0
        self._schema, self._pack, self._unpack = schema, pack, unpack
        self._items: list[T] = []
        self._length = 0
        self._file: IO[bytes] | None = None
        self._writer: pyarrow.RecordBatchWriter | None = None
        #: The blocks of the file, and the number of the first thing in each.
        self._batches: list[pyarrow.RecordBatch] = []
        self._firsts: list[int] = []
        self._ending = threading.Lock()
        self._reads = 0

    def append(self, item: T) -> None:
        """Add a thing at the end.

        Raises:
            Problem: when the disk is full.
        """
        if self._batches:
            raise ValueError("what is being read cannot grow")
        self._items.append(item)
        self._length += 1
        self._weight += self._weigh(item)
        if self._writer is None:
            if self._weight > IN_MEMORY or self._written is not None:
                self._write()
        elif len(self._items) >= BLOCK or self._weight > BLOCK_BYTES:
            self._write()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        self._end_writing()
        if not self._batches:
            yield from self._items
        for batch in self._batches:
            yield from map(self._unpack, batch.to_pylist())

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        self._end_writing()
        if not self._batches:
            return self._items[index]
        index %= self._length
        self._count_reads(1)
        block = bisect_right(self._firsts, index) - 1
        return self._unpack(self._batches[block].slice(index - self._firsts[block], 1).to_pylist()[0])

    def _count_reads(self, more: int) -> None:
        before, self._reads = self._reads, self._reads + more
        if before // _LET_GO_EVERY < self._reads // _LET_GO_EVERY and hasattr(mmap, "MADV_DONTNEED"):
            # What was read long ago need not stay in memory; it is read again from the file if need be.
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def packed(self, start: int, stop: int) -> list[Mapping[str, Any]]:
        """The things from `start` to before `stop` as they are written: as rows of their columns."""
        self._end_writing()
        if not self._batches:
            return [self._pack(item) for item in self._items[start:stop]]
        self._count_reads(stop - start)
        rows: list[Mapping[str, Any]] = []
        for block in range(bisect_right(self._firsts, start) - 1, len(self._batches)):
            first = self._firsts[block]
            if first >= stop:
                break
            low = max(0, start - first)
            rows += self._batches[block].slice(low, stop - first - low).to_pylist()
        return rows

    def ranges(self, most: int) -> Iterator[range]:
        """All places in order, those together that can be in memory together: `most` at most, and fewer of heavy things."""
        self._end_writing()
        ends = self._firsts[1:] or [*range(most, self._length, most), self._length]
        weights = [batch.nbytes for batch in self._batches] or [0] * len(ends)
        start = stop = weight = 0
        for end, more in zip(ends, weights, strict=True):
            if stop > start and (end - start > most or weight + more > BLOCK_BYTES):
                yield range(start, stop)
                start, weight = stop, 0
            stop, weight = end, weight + more
        if stop > start:
            yield range(start, stop)

    def _write(self) -> None:
        """Put what is in memory into the file."""
        import pyarrow

        with full_disk_told():
            if self._writer is None:
                self._file = open_nameless()  # it lives as long as the spool does
                self._columns = self._schema()
                self._writer = pyarrow.ipc.new_file(pyarrow.PythonFile(self._file, "w"), self._columns)
            for some in self._cut():
                rows = [self._pack(item) for item in some]
                self._writer.write_batch(_as_batch(rows, self._columns))
                if self._written is not None:
                    self._written(some, rows)
        self._items, self._weight = [], 0

    def _cut(self) -> Iterator[list[T]]:
        """What is in memory in blocks, each small enough to be unpacked at once."""
        if len(self._items) <= BLOCK and self._weight <= BLOCK_BYTES:
            yield self._items
            return
        block: list[T] = []
        weight = 0
        for item in self._items:
            block.append(item)
            weight += self._weigh(item)
            if len(block) >= BLOCK or weight > BLOCK_BYTES:
                yield block
                block, weight = [], 0
        if block:
            yield block

    def _end_writing(self) -> None:
        if self._writer is None or self._batches:
            return
        import pyarrow

        # A data set is shown on several pages, each with a thread of its own.
        with self._ending:
            if self._batches:
                return
            if self._items:
                self._write()
            assert self._file is not None
            with full_disk_told():
                self._writer.close()
                self._file.flush()
            self._mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pyarrow.ipc.open_file(pyarrow.BufferReader(pyarrow.py_buffer(self._mapped)))
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            self._firsts = [0, *itertools.accumulate(batch.num_rows for batch in batches)]
            self._batches = batches
