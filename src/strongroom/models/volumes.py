"""fsspec protocol `sealed` inside an enclave, where volumes are plain folders that the guest seals.

So that a program which reads and writes `sealed:///data/sales/a.csv` at its owner's runs in an enclave as well.
"""

from __future__ import annotations

from typing import Any, ClassVar

from fsspec.implementations.local import LocalFileSystem

from strongroom.errors import InputError
from strongroom.models.on_spark import in_spark_job

try:
    from fsspec.implementations.chained import ChainedFileSystem
except ImportError:  # of an environment with an older fsspec, where `sealed::` leads nowhere
    ChainedFileSystem = object

__all__ = ["VolumeFileSystem"]


class VolumeFileSystem(LocalFileSystem, ChainedFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The enclave's own files, `sealed::file://` too; folders appear with their files, as in a data set."""

    protocol: ClassVar[str] = "sealed"

    def __init__(self, fo: str = "", target_protocol: str | None = None, **options: Any) -> None:
        if in_spark_job():
            raise InputError("in a Spark job Spark reads and writes the volumes", hint="spark.read, DataFrame.write")
        if target_protocol not in (None, "file", "local"):
            raise InputError(f"an enclave reads no {target_protocol}:// by itself", hint="give the job a volume of it")
        super().__init__(auto_mkdir=True, **options)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        if path == "sealed://":  # what is left of a chained URL's `sealed::`
            return ""
        return super()._strip_protocol(str(path).removeprefix("sealed://"))
