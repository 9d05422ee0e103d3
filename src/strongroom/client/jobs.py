"""Jobs of a workspace: planned, built and run to their end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from strongroom.client.petnames import Petnames
from strongroom.client.volumes import Datasets, VolumeRequest, resolve_volume
from strongroom.client.workspace import Workspace
from strongroom.config import Settings
from strongroom.errors import InputError
from strongroom.jobs.plan import Bundle, LaunchPlan, Outcome, plan_job
from strongroom.jobs.registry import SIMULATED, WORKLOADS, enclave
from strongroom.jobs.runtimes import Runtimes
from strongroom.jobs.spec import JobSpec
from strongroom.jobs.targets.local import LocalTarget
from strongroom.jobs.targets.mounts import Mounts

__all__ = ["JobRunner", "mounts"]


def mounts(workspace: Workspace, settings: Settings) -> Mounts:
    """Return what mounts folders of stores for a workspace."""
    return Mounts(folder=workspace.folder / "mounts", locks=settings.cache / "stores")


class JobRunner:
    """Plans, builds and runs jobs of a workspace.

    Args:
        workspace: The workspace.
        settings: Program settings.
        progress: Told about slow first-time steps.
    """

    def __init__(
        self, workspace: Workspace, settings: Settings, progress: Callable[[str], None] = lambda _line: None
    ) -> None:
        self._workspace = workspace
        self._settings = settings
        self._progress = progress

    def plan(self, spec: JobSpec, volumes: Sequence[VolumeRequest], datasets: Datasets | None = None) -> LaunchPlan:
        """Return the plan of a job; one with `--master spark://...` is for the workspace's cluster."""
        if spec.target == "cluster" or spec.engine.get("spark.master", "").startswith("spark://"):
            from strongroom.client.cluster import Cluster  # noqa: PLC0415  # 15 ms that most jobs do not need

            cluster = Cluster.load(self._workspace)
            if spec.venv is not None and spec.venv.resolve() != cluster.environment:
                raise InputError(
                    "a job on the cluster runs with the packages that were deployed: take the environment out",
                    hint=f"or deploy it first: `strongroom cluster deploy --venv {spec.venv}`",
                )
            spec = replace(spec, target="cluster", venv=cluster.environment, workers=len(cluster.hosts))
        owners = Petnames.load(self._workspace)
        resolved = tuple(resolve_volume(v, datasets, owners) for v in volumes)
        keys = tuple(replace(k, owner=self._workspace.owner) for k in spec.keys)
        return plan_job(replace(spec, volumes=resolved, keys=keys), WORKLOADS, (self._workspace.identity,))

    def build(self, plan: LaunchPlan) -> Bundle:
        """Build the plan's bundle."""
        cache = self._settings.cache
        kind = enclave(
            plan.spec.enclave,
            Runtimes(cache / "runtimes", self._progress),
            cache=cache / "digests",
            service=self._workspace.guest_socket_folder,
            identity_pem=self._workspace.identity_pem,
        )
        return kind.build(plan, self._workspace.folder / "bundles")

    def run(self, plan: LaunchPlan, bundle: Bundle, *, output_to_stderr: bool = False) -> Outcome:
        """Run a built job to its end; starts an embedded service that is not running."""
        if plan.spec.enclave not in SIMULATED:
            raise InputError(
                f"enclave kind {plan.spec.enclave} does not run on this machine's targets",
                hint=f"its bundle {bundle.folder} runs on a machine that has it: docs/guides/hardware.md",
            )
        if plan.spec.target not in ("local", "cluster"):
            raise InputError(f"target {plan.spec.target!r} is not available: expected local or cluster")
        if self._workspace.embedded:
            self._refresh_endorsements()
        self._workspace.ensure_running()
        seed, cache = self._workspace.seed, self._settings.cache / "digests"
        local = LocalTarget(
            seed=seed, cache=cache, mounts=mounts(self._workspace, self._settings), output_to_stderr=output_to_stderr
        )
        if plan.command.worker is None:
            return local.run(bundle, plan)
        from strongroom.jobs.targets.cluster import ClusterTarget, LocalHost, WorkerHost  # noqa: PLC0415  # see `plan`

        hosts: Sequence[WorkerHost] = [LocalHost(seed=seed, cache=cache)]
        if plan.spec.workers:
            from strongroom.client.cluster import Cluster  # noqa: PLC0415

            cluster = Cluster.load(self._workspace)
            if not cluster.started:
                raise InputError("this workspace's cluster is not started", hint="`strongroom cluster start`")
            if bundle.stores:
                raise InputError(
                    f"volume {min(bundle.stores)} lies in a store, which other machines do not mount yet",
                    hint="use a folder that all machines have, or local-cluster[N,cores,MiB]",
                )
            hosts = cluster.machines(self._workspace, self._settings, self._progress)
        return ClusterTarget(driver=local, hosts=hosts, say=self._progress).run(bundle, plan)

    def _refresh_endorsements(self) -> None:
        # The simulated platform's maker has no web service: its endorsements are renewed here once a day.
        found = self._workspace.service_folder / "endorsements" / "simulated.json"
        now = datetime.now(UTC)
        if not found.exists() or now.timestamp() - found.stat().st_mtime > 86_400:
            from strongroom.client.endorsements import refresh_endorsements  # noqa: PLC0415  # 60 ms, once a day

            refresh_endorsements(self._workspace.folder, now=now)
