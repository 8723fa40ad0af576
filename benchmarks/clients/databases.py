"""Tables of `ssamba embed` in pandas, polars, DuckDB and LanceDB: what they read, and the neighbors that they find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import lancedb
import numpy as np
import pandas
import polars
import soundfile
from pyarrow import parquet

import ssamba
from ssamba.evaluation.clips import Waves
from ssamba.evaluation.task import Task

TOP = 10


def run(model: str, task: Task, waves: Waves, work: Path) -> dict[str, Any]:
    """Return the type of the column `embedding` in each, and whether each finds NumPy's ten neighbors of each row."""
    for i in range(len(task.clips)):
        path = work / "clips" / str(task.labels[i]) / f"{i}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waves[i], waves.sample_rate_hz)
    table = work / "embeddings.parquet"
    ssamba.embed_files(work / "clips", table, model)
    vectors = ssamba.read_embeddings(table)["embedding"]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    paths = parquet.read_table(table)["path"].to_pylist()

    frame = pandas.read_parquet(table)
    of_pandas = np.stack(frame["embedding"].tolist())
    of_polars = polars.read_parquet(table)["embedding"]
    connection = duckdb.connect()
    view = f"SELECT path, embedding::FLOAT[{vectors.shape[1]}] AS vector FROM '{table}'"
    database = lancedb.connect(work / "lance")
    lance = database.create_table(
        "sounds", parquet.ParquetFile(table).iter_batches(), parquet.read_schema(table), mode="overwrite"
    )
    right = dict.fromkeys(("duckdb", "lancedb"), 0)
    rows = range(0, len(vectors), 10)
    for row in rows:
        scores = unit @ unit[row]
        own = np.sort(scores)[::-1][:TOP]
        query = vectors[row].tolist()
        found = connection.execute(
            f"SELECT path FROM ({view}) ORDER BY array_cosine_similarity(vector, ?::FLOAT[{len(query)}]) DESC LIMIT ?",
            [query, TOP],
        ).fetchall()
        right["duckdb"] += _same(scores, own, [paths.index(path) for (path,) in found])
        near = lance.search(query, vector_column_name="embedding").distance_type("cosine").limit(TOP).to_list()
        right["lancedb"] += _same(scores, own, [paths.index(one["path"]) for one in near])
    return {
        "rows": len(vectors),
        "pandas": f"equal {np.array_equal(of_pandas, vectors)}",
        "polars": f"{of_polars.dtype}, equal {np.array_equal(of_polars.to_numpy(), vectors)}",
        "duckdb": connection.execute(f"SELECT typeof(embedding) FROM '{table}' LIMIT 1").fetchall()[0][0],
        "lancedb": str(lance.schema.field("embedding").type),
        **{f"queries with NumPy's neighbors, {name}": f"{count} of {len(rows)}" for name, count in right.items()},
    }


def _same(scores: Any, best: Any, found: list[int]) -> bool:
    """Return whether the rows that were found have the best scores."""
    return bool(np.allclose(np.sort(scores[found])[::-1], best, atol=1e-5))
