"""Kinds of TEE."""

__all__: list[str] = []
