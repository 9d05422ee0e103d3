"""The files of a model where a program's volumes are plain folders, and where only Spark's JVM reads and writes them.

In a Spark job the sealed FileSystem is the JVM's. What Python wrote into a volume's folder by itself would be left in
enclave memory, so the driver's files are handed over through Spark.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from strongroom.errors import InputError

__all__ = ["below", "in_spark_job", "reading", "writing"]

_AGENT = Path("/run/strongroom/agent.sock")
"""There in Spark's enclaves alone."""


def in_spark_job() -> bool:
    """Return whether this is an enclave of a Spark job."""
    return _AGENT.exists()


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Yield where to write the files of `folder`; they are in it once the block has ended well."""
    if not in_spark_job():
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    jvm, conf = _spark()
    with tempfile.TemporaryDirectory() as beside:
        yield Path(beside)
        for file in sorted(Path(beside).iterdir(), key=lambda f: f.suffix == ".json"):  # the record last
            target = _path(jvm, folder / file.name)
            target.getFileSystem(conf).copyFromLocalFile(False, True, _path(jvm, file), target)


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Yield where the file at `path` can be read.

    Raises:
        OSError: It is not there.
    """
    if not in_spark_job():
        yield path
        return
    jvm, conf = _spark()
    source = _path(jvm, path)
    if not source.getFileSystem(conf).exists(source):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with tempfile.TemporaryDirectory() as beside:
        found = Path(beside) / path.name
        source.getFileSystem(conf).copyToLocalFile(False, source, _path(jvm, found))
        yield found


def below(folder: Path) -> list[Path]:
    """Return the files below `folder`, at any depth.

    Raises:
        InputError: A link is among them.
    """
    if not in_spark_job():
        found = sorted(folder.rglob("*"))
        if link := next((path for path in found if path.is_symlink()), None):
            raise InputError(f"{link} is a link: it is not followed")
        return [path for path in found if path.is_file()]
    jvm, conf = _spark()
    top, paths = _path(jvm, folder), list[Path]()
    files = top.getFileSystem(conf).listFiles(top, True)
    while files.hasNext():
        path = Path(files.next().getPath().toUri().getPath())
        paths.append(folder / path.relative_to(top.toUri().getPath()))
    return paths


def _spark() -> tuple[Any, Any]:
    context = import_module("pyspark").SparkContext._active_spark_context
    if context is None:
        raise InputError(
            "the volumes of a Spark job are read and written through Spark, which does not run here",
            hint="save and load models in the driver, after SparkSession.builder.getOrCreate()",
        )
    return context._jvm, context._jsc.hadoopConfiguration()


def _path(jvm: Any, path: Path) -> Any:
    return jvm.org.apache.hadoop.fs.Path(f"file:{path.absolute()}")
