"""RATS (RFC 9334): evidence, endorsements, verification, appraisal, attestation results."""

__all__: list[str] = []
