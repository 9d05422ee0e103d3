"""Keys, release policies, data-set heads, certificates and the audit log, behind one gate (`broker`)."""

__all__: list[str] = []
