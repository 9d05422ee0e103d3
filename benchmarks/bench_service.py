"""Key releases per second and latency under concurrent guests.

Each guest is a thread that runs the whole release protocol over TLS on the Unix socket: auth, attest, resource.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from strongroom.attest.binding import init_data_digest, job_init_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.platform import load_seed
from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave
from strongroom.client.owner import OwnerClient
from strongroom.client.policies import allow_job
from strongroom.client.setup import create_workspace
from strongroom.guest.session import ServiceSession

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
            return {"guests": guests}
        finally:
            if (service := workspace.pid()) is not None:
                os.kill(service, 15)


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
