"""Jobs: what to run (`spec`), in what order of parts (`plan`), as which program, in which TEE, where."""

__all__: list[str] = []
