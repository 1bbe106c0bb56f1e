"""A run: `run` is the main path, `graph` its stages, `store` the stages on disk, `sweep` many runs."""
