"""Errors that the user can fix. The CLI prints each as a line or two and exits with status 1; any other error is a bug."""


class CasdError(Exception):
    """Base of all errors whose message is written for the user: what was wrong, what was expected, what to do."""


class RunRefused(CasdError):
    """A run cannot be made on this machine, which was found before anything was made."""


class ConfigError(CasdError):
    """A configuration value, name or combination that cannot work; raised before any model is built."""


class CorpusError(CasdError):
    """Text that is missing, unreadable, empty, or too short for the requested splits."""


class ModelError(CasdError):
    """A model or tokenizer that cannot be found, read or used."""


class StoreError(CasdError):
    """A stage on disk that is damaged, or that could not be written."""


class TrainingStopped(CasdError):
    """Training that failed: its loss is not finite or ended too high, or no backdoor was injected. Finished stages are kept."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type's name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
