"""Parquet, block by block."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from core.problem import Problem
from core.readers import BLOCK, Entry, first_line, read_bytes, unpack_batches

ENDINGS = (".parquet",)


def read(path: Path, limit: int | None) -> Iterator[Entry]:
    """Its rows, a block at a time."""
    import pyarrow.parquet

    packed = path.suffix.lower() == ".gz"
    with io.BytesIO(read_bytes(path)) if packed else path.open("rb") as file:
        if not file.read(1):
            raise Problem("{name} is empty.", "", "Choose a file with at least one row.", name=path.name)
        file.seek(0)
        try:
            yield from unpack_batches(pyarrow.parquet.ParquetFile(file).iter_batches(BLOCK), limit)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise Problem(
                "{name} is no whole Parquet file.", "The reader says: {error}.", "Fetch or write it again.",
                name=path.name, error=first_line(error),
            ) from None  # fmt: skip
