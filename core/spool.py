"""Long sequences: in memory while they are short, in a file of this process's own once they are not."""

from __future__ import annotations

import mmap
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar, overload

from core.problem import Problem
from core.runs import home, make_private_folder

if TYPE_CHECKING:
    import pyarrow

T = TypeVar("T")

IN_MEMORY = 64 * 1024**2
"""How much of a sequence is kept in memory (bytes, roughly); one that grows larger lies in a file."""

BLOCK = 256
"""Things of a file that are written and unpacked together."""


class Spool(Sequence[T], Generic[T]):
    """Things of one kind in the order in which they were appended; once they are read, none can be appended any more.

    The file has no name that anybody else could open, and goes when the process ends, however it ends. It is mapped into
    memory, so that the system may take its pages back whenever it needs the room.

    Args:
        schema: makes the columns of one thing, when they are needed.
        pack: a thing as a row of these columns.
        unpack: the inverse.
        weigh: how many bytes a thing takes in memory, roughly.
    """

    def __init__(
        self,
        schema: Callable[[], pyarrow.Schema],
        pack: Callable[[T], Mapping[str, Any]],
        unpack: Callable[[Mapping[str, Any]], T],
        weigh: Callable[[T], int],
    ):
        self._weigh, self._weight = weigh, 0
        self._schema, self._pack, self._unpack = schema, pack, unpack
        self._items: list[T] = []
        self._length = 0
        self._file: IO[bytes] | None = None
        self._writer: pyarrow.RecordBatchWriter | None = None
        self._batches: list[pyarrow.RecordBatch] = []

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
        if self._weight > IN_MEMORY and len(self._items) >= BLOCK:
            self._write(len(self._items) // BLOCK * BLOCK)

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
        block, place = divmod(index % self._length, BLOCK)
        return self._unpack(self._batches[block].slice(place, 1).to_pylist()[0])

    def _write(self, count: int) -> None:
        """Put the first so many of what is in memory into the file."""
        import pyarrow

        try:
            if self._writer is None:
                folder = home() / "spool"
                make_private_folder(folder)
                # It lives as long as the spool does.
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
                self._columns = self._schema()
                self._writer = pyarrow.ipc.new_file(pyarrow.PythonFile(self._file, "w"), self._columns)
            for start in range(0, count, BLOCK):
                rows = [self._pack(item) for item in self._items[start : min(start + BLOCK, count)]]
                self._writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=self._columns))
        except OSError as error:
            free = shutil.disk_usage(home()).free / 1e6
            raise Problem(
                "The data does not fit onto the disk: {error}.", "{free:.0f} MB are free in {folder}.",
                "Make room, or let ATELIER_HOME name a folder on a larger disk.",
                error=error.strerror or error, free=free, folder=home(),
            ) from None  # fmt: skip
        self._items = self._items[count:]

    def _end_writing(self) -> None:
        if self._writer is None or self._batches:
            return
        import pyarrow

        if self._items:
            self._write(len(self._items))
        assert self._file is not None
        self._writer.close()
        self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pyarrow.ipc.open_file(pyarrow.BufferReader(pyarrow.py_buffer(mapped)))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
