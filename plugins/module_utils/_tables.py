# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of parquet and arrow files, with pyarrow and in pieces, as the package `datasets` takes them."""

from __future__ import annotations

import sys
import typing as t
from pathlib import Path

from ._formats import Records, Wrong

SUFFIXES = (".parquet", ".arrow")
ROWS = 1000
BUFFER = 1 << 20
_TORN = "copy it again, or save the records as .jsonl"


def unreadable(path: Path) -> Wrong:
    """Why this Python cannot read the file, and what to change; None when it can."""
    if path.suffix not in SUFFIXES or _imported():
        return None
    return (
        f"{path.suffix} files are read with pyarrow, which {sys.executable} does not have",
        "install the package pyarrow for it, or save the records as .jsonl",
    )


def _imported() -> bool:
    """What can be found may still not come: of root's own Python, another account may not read all."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True


def records(path: Path) -> Records:
    """Rows as records. Only what is asked for is in memory: of parquet some pages, of arrow one record batch."""
    import pyarrow

    try:
        with pyarrow.OSFile(str(path)) as file:
            schema, batches = (_parquet if path.suffix == ".parquet" else _arrow)(file)
            if wrong := _no_dataset(schema):
                yield 0, None, wrong
                return
            first = 1
            for batch in batches:
                for at in range(0, batch.num_rows, ROWS):
                    yield from _rows(batch.slice(at, ROWS), first + at)
                first += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        yield 0, None, (f"it is no {path.suffix[1:]} file, or a part of one: {error}", _TORN)


def _parquet(file: t.Any) -> tuple[t.Any, t.Iterable[t.Any]]:
    from pyarrow import parquet

    found = parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
    return found.schema_arrow, found.iter_batches(ROWS)


def _arrow(file: t.Any) -> tuple[t.Any, t.Iterable[t.Any]]:
    """A stream, which `datasets` writes itself, or a file with an index at its end."""
    from pyarrow import ArrowInvalid, ipc

    try:
        stream = ipc.open_stream(file)
    except ArrowInvalid:
        found = ipc.open_file(file)
        return found.schema, (found.get_batch(number) for number in range(found.num_record_batches))
    return stream.schema, stream


def _no_dataset(schema: t.Any) -> Wrong:
    """What of the columns `datasets` does not take."""
    names = schema.names
    for name, kind in zip(names, schema.types):
        if names.count(name) > 1:
            return f"two columns are named {name!r}", "rename one of them"
        if odd := _odd(kind):
            return f"column {name!r} is of the type {odd}, which `datasets` does not know", "write it as text or a list"
    return None


def _odd(kind: t.Any) -> str:
    """The type, or the one in it, that has no word in `datasets`; empty when there is none."""
    from pyarrow import types

    if types.is_struct(kind):
        return next(filter(None, (_odd(kind.field(i).type) for i in range(kind.num_fields))), "")
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_dictionary(kind):
        return _odd(kind.value_type)
    return "" if any(known(kind) for known in _known(types)) else str(kind)


def _known(types: t.Any) -> t.Iterator[t.Callable[[t.Any], bool]]:
    numbers = ("boolean", "integer", "floating", "decimal128", "decimal256")
    times = ("time", "timestamp", "date", "duration")
    for word in (*numbers, *times, "null", "binary", "large_binary", "string", "large_string"):
        yield getattr(types, f"is_{word}")


def _rows(batch: t.Any, first: int) -> Records:
    """The rows of a batch; where one of them cannot be read, one by one."""
    import pyarrow

    for i, kind in enumerate(batch.schema.types):
        if any(same(kind) for same in (pyarrow.types.is_timestamp, pyarrow.types.is_duration, pyarrow.types.is_time64)):
            # a number serves here, and neither pandas nor a list of time zones is needed for it
            batch = batch.set_column(i, batch.schema.names[i], batch.column(i).cast(pyarrow.int64()))
    try:
        yield from ((number, record, None) for number, record in enumerate(batch.to_pylist(), first))
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            what = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"it cannot be read: {error}"
            yield first, None, (what, "write it again")
            return
        for at in range(batch.num_rows):
            yield from _rows(batch.slice(at, 1), first + at)
