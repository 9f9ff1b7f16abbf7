"""A run as data frames, for notebooks: `cai.load("runs/quickstart").decisions()`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cai.audit.questions import QUESTIONS
from cai.audit.views import Views

if TYPE_CHECKING:
    import pandas


class Frames:
    """A run's tables as pandas data frames. The columns are those of `cai audit query --list`.

    It holds the run's store open until `close`, or the end of a `with`.
    """

    def __init__(self, run: str | Path) -> None:
        self._views = Views(run)

    def close(self) -> None:
        """Close the run's store."""
        self._views.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decisions(self) -> pandas.DataFrame:
        """One row per judgment."""
        return self.query("SELECT * FROM decisions")

    def pairs(self) -> pandas.DataFrame:
        """One row per comparison, with where it ended."""
        return self.query("SELECT * FROM pairs")

    def votes(self) -> pandas.DataFrame:
        """One row per comparison and principle."""
        return self.query("SELECT * FROM votes")

    def calls(self) -> pandas.DataFrame:
        """One row per model call."""
        return self.query("SELECT * FROM calls")

    def reviews(self) -> pandas.DataFrame:
        """One row per vote a person cast."""
        return self.query("SELECT * FROM reviews")

    def principles(self) -> pandas.DataFrame:
        """One row per principle."""
        return self.query("SELECT * FROM principles")

    def query(self, sql: str, **parameters: Any) -> pandas.DataFrame:
        """Return the rows of a SELECT, or of a named question such as `order-flips`, with values for its `:names`.

        Raises UserError where SQLite refuses it.
        """
        import pandas

        found = self._views.query(QUESTIONS[sql].sql if sql in QUESTIONS else sql, parameters)
        return pandas.DataFrame(found.rows, columns=found.columns)


def write_parquet(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Write rows as one Parquet file, atomically. Columns without a value in any row are kept, as text."""
    import pyarrow
    from pyarrow import parquet

    from cai.manifest import write_atomically

    names = list(rows[0]) if rows else columns
    arrays = {name: pyarrow.array([row[name] for row in rows]) for name in names}
    arrays = {n: a.cast(pyarrow.string()) if pyarrow.types.is_null(a.type) else a for n, a in arrays.items()}
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(arrays), sink)
    write_atomically(path, sink.getvalue().to_pybytes())
