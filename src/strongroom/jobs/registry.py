"""The kinds of workload, enclave and target by name: a new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from strongroom.jobs.plan import Workload
from strongroom.jobs.workloads.python import PythonWorkload
from strongroom.jobs.workloads.spark import SparkWorkload
from strongroom.jobs.workloads.torch import TorchWorkload

__all__ = ["WORKLOADS"]

WORKLOADS: Mapping[str, Workload] = {"python": PythonWorkload(), "spark": SparkWorkload(), "torchrun": TorchWorkload()}
