"""fsspec protocol `sealed` inside an enclave, where volumes are plain folders that the guest seals.

So that a program which reads and writes `sealed:///data/sales/a.csv` at its owner's runs in an enclave as well.
"""

from __future__ import annotations

from typing import Any, ClassVar

from fsspec.implementations.local import LocalFileSystem

from strongroom.errors import InputError
from strongroom.models.on_spark import in_spark_job

__all__ = ["VolumeFileSystem"]


class VolumeFileSystem(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The enclave's own files; folders appear with their files, as in a data set."""

    protocol: ClassVar[str] = "sealed"

    def __init__(self, **options: Any) -> None:
        if in_spark_job():
            raise InputError("in a Spark job Spark reads and writes the volumes", hint="spark.read, DataFrame.write")
        super().__init__(auto_mkdir=True, **options)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return super()._strip_protocol(str(path).removeprefix("sealed://"))
