"""The owner's SDK: workspace, keys, data, policies, jobs. It verifies the trust service before it trusts it."""

__all__: list[str] = []
