"""Key releases per second and latency under concurrent guests, and where the service's time goes.

Each guest is a thread that runs the whole release protocol over TLS on the Unix socket: auth, attest, resource. The
breakdown calls the same service in this process, one thread, with clocks around its steps; what the service's process
uses beyond that is HTTP, JSON and TLS.
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from strongroom.attest.binding import init_data_digest, job_init_data, rcar_report_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.handshake import AttestRequest, AuthRequest, tee_pubkey
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.platform import load_seed
from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave
from strongroom.client.owner import OwnerClient
from strongroom.client.policies import allow_job
from strongroom.client.setup import create_workspace
from strongroom.client.workspace import Workspace
from strongroom.crypto import jose, x509
from strongroom.guest.session import ServiceSession
from strongroom.kms import broker
from strongroom.kms.audit import AuditLog
from strongroom.kms.policies import PolicyStore
from strongroom.kms.stores.sql import SQLStore
from strongroom.service import guest_api
from strongroom.service.state import TrustService

MEASUREMENT = bytes(range(32))


class _Attester:
    tee = "sgx"

    def __init__(self, enclave: SimulatedQuotingEnclave, config_id: bytes) -> None:
        self._enclave = enclave
        self._config_id = config_id

    def attest(self, report_data: bytes) -> Evidence:
        quote = self._enclave.quote_sgx(
            measurement=MEASUREMENT, signer=bytes(32), report_data=report_data, config_id=self._config_id
        )
        return Evidence(tee="sgx", quote=quote)


def run(quick: bool) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        workspace = create_workspace(Path(name)).workspace
        try:
            owner = OwnerClient(workspace)
            owner.call("POST", "/v1/keys", {"name": "bench"})
            dataset = owner.create_dataset("bench").dataset
            volume = {"name": "v", "dataset": dataset, "key": "bench", "owner": owner.owner, "mode": "ro"}
            document: dict[str, object] = {"format": 1, "volumes": [volume], "arguments": []}
            init_data = job_init_data(document)
            digest = init_data_digest(init_data)
            allow_job(
                owner,
                document,
                MEASUREMENT.hex(),
                job="sha256:" + digest.hex(),
                unsafe_accept_simulated=True,
            )
            pki = SimulatedPKI.create(load_seed(workspace.seed), now=datetime.now(UTC))
            attester = _Attester(SimulatedQuotingEnclave(pki), digest.ljust(64, b"\0"))

            def session() -> ServiceSession:
                return ServiceSession(
                    f"unix:{workspace.guest_socket_folder}/guest.sock",
                    workspace.identity_pem,
                    (workspace.identity,),
                    attester,
                    init_data,
                )

            guests = {n: _load(session, owner.owner, n, quick) for n in (1, 8, 64)}
            rounds = 20 if quick else 400
            kept = _cpu_ms(workspace, session, owner.owner, rounds, fresh=False)
            fresh = _cpu_ms(workspace, session, owner.owner, rounds, fresh=True)
            _stop(workspace)
            steps = _steps(workspace, owner.owner, attester, init_data, rounds)
            inside = sum(cpu for cpu, _ in steps.values())
            steps["HTTP, JSON, TLS records"] = (kept - inside, kept - inside)
            steps["a TLS handshake"] = (fresh - kept, fresh - kept)
            breakdown = {name: {"cpu_ms": round(cpu, 3), "ms": round(ms, 3)} for name, (cpu, ms) in steps.items()}
            per_core = {"kept connection": round(1000 / kept, 1), "own connection": round(1000 / fresh, 1)}
            return {"guests": guests, "exchanges_per_s_and_core": per_core, "breakdown": breakdown, "rounds": rounds}
        finally:
            _stop(workspace)


def _stop(workspace: Workspace) -> None:
    if (service := workspace.pid()) is None:
        return
    os.kill(service, 15)
    for _ in range(400):
        if workspace.pid() is None:
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(service, os.WNOHANG)
        time.sleep(0.025)


def _cpu_ms(
    workspace: Workspace, session: Callable[[], ServiceSession], owner: str, rounds: int, *, fresh: bool
) -> float:
    """Return milliseconds of CPU that the service's processes use for an exchange."""
    mine = session()
    before = 0.0
    for number in range(rounds + 3):
        if number == 3:  # what is read and imported at first is not the exchange's
            before = _used_s(workspace)
        if fresh:
            mine = session()
        mine.attest()
        mine.key(owner, "bench")
    used = _used_s(workspace) - before
    return used / rounds * 1000


def _used_s(workspace: Workspace) -> float:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
            parents[pid] = (int(fields[1]), int(fields[11]) + int(fields[12]))
    family = {workspace.pid()}
    while more := {pid for pid, (parent, _) in parents.items() if parent in family} - family:
        family |= more
    return sum(parents[pid][1] for pid in family if pid in parents) / os.sysconf("SC_CLK_TCK")


class _Clocks:
    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        cpu, wall = time.thread_time(), time.perf_counter()
        yield
        self.spent[name][0] += time.thread_time() - cpu
        self.spent[name][1] += time.perf_counter() - wall

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.on(name):
                return function(*arguments, **named)

        return timed


def _steps(
    workspace: Workspace, owner: str, attester: _Attester, init_data: str, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return milliseconds of CPU and of time for each step of an exchange."""
    logging.getLogger("strongroom").setLevel(logging.ERROR)  # that the root is simulated is said each time
    service = TrustService(workspace.service_folder, workspace.root_folder)
    service.unlock([], now=datetime.now(UTC))
    api, clocks, transaction = guest_api.GuestAPI(service), _Clocks(), SQLStore.transaction

    @contextlib.contextmanager
    def timed(self: SQLStore) -> Iterator[Any]:
        with contextlib.ExitStack() as held:
            yield held.enter_context(transaction(self))
            with clocks.on("commit to disk"):
                held.close()

    patches = [
        (guest_api, "verify_any", "evidence verification"),
        (guest_api, "issue_ear", "attestation result, signed"),
        (PolicyStore, "policy", "policies read"),
        (broker, "appraise", "appraisal"),
        (jose, "jwe_seal", "JWE wrap"),
        (AuditLog, "append", "audit record"),
    ]
    whole = ("auth", "attest: the rest", "release: the rest")

    def exchange() -> None:
        key, now = x509.new_key(), datetime.now(UTC)
        with clocks.on(whole[0]):
            session, challenge = api.auth(AuthRequest(tee="sgx").to_json())
        nonce, pubkey = str(challenge["nonce"]), tee_pubkey(key.public_key())
        evidence = attester.attest(rcar_report_data(nonce, pubkey)).to_json()
        request = AttestRequest(nonce=nonce, tee_pubkey=pubkey, evidence=evidence, init_data=init_data).to_json()
        with clocks.on(whole[1]):
            api.attest(session, request, now=now)
        with clocks.on(whole[2]):
            sealed = api.resource(session, owner, "key", "bench", now=now)
        jose.jwe_open(sealed, key)

    with contextlib.ExitStack() as stack:
        for place, name, step in patches:
            stack.enter_context(mock.patch.object(place, name, clocks.around(step, getattr(place, name))))
        stack.enter_context(mock.patch.object(SQLStore, "transaction", timed))
        exchange()
        clocks.spent.clear()
        for _ in range(rounds):
            exchange()
    service.store.close()
    found = {name: (cpu / rounds * 1000, wall / rounds * 1000) for name, (cpu, wall) in clocks.spent.items()}
    parts = {whole[1]: ("evidence verification", "attestation result, signed")}
    parts[whole[2]] = ("policies read", "appraisal", "JWE wrap", "audit record", "commit to disk")
    for rest, inner in parts.items():
        found[rest] = tuple(found[rest][n] - sum(found[step][n] for step in inner) for n in (0, 1))  # type: ignore[assignment]
    return {name: found[name] for name in (whole[0], *parts[whole[1]], whole[1], *parts[whole[2]], whole[2])}


def _load(session: object, owner: str, guests: int, quick: bool) -> dict[str, float]:
    each = max(3, (60 if quick else 400) // guests)
    exchanges: list[float] = []
    releases: list[float] = []
    lock = threading.Lock()

    def guest(_number: int) -> None:
        mine = session()  # type: ignore[operator]
        for _ in range(each):
            started = time.perf_counter()
            mine.attest()
            attested = time.perf_counter()
            mine.key(owner, "bench")
            ended = time.perf_counter()
            with lock:
                exchanges.append(ended - started)
                releases.append(ended - attested)
        mine.close()

    started = time.perf_counter()
    with ThreadPoolExecutor(guests) as pool:
        list(pool.map(guest, range(guests)))
    seconds = time.perf_counter() - started
    return {
        "exchanges_per_s": round(len(exchanges) / seconds, 1),
        "exchange_p50_ms": round(statistics.median(exchanges) * 1000, 1),
        "exchange_p99_ms": round(sorted(exchanges)[int(len(exchanges) * 0.99)] * 1000, 1),
        "release_p50_ms": round(statistics.median(releases) * 1000, 1),
        "release_p99_ms": round(sorted(releases)[int(len(releases) * 0.99)] * 1000, 1),
    }
