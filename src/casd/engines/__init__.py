"""Engines: where the units of runs are executed. Each is a dataclass of its options, which are the keys of `configs/engine/`."""

ENGINES: dict[str, str] = {
    "local": "casd.engines.local:Local",
}
