"""What runs inside the TEE: attest, receive keys, serve the workload, run it, publish, forget.

The host is the adversary: launch settings, files, clock and sockets are input. Only the job document that the evidence
binds, and what the trust service released, are trusted.
"""

__all__: list[str] = []
