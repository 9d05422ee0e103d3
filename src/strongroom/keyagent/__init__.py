"""The workload's only door to its keys (docs/formats/key-agent.md)."""

__all__: list[str] = []
