"""The errors a user can mend. The CLI prints each as a line or two and exits with status 1; anything else is a bug."""


class CasdError(Exception):
    """Base of all errors whose message is written for the user: what was wrong, what was expected, what to do."""


class ConfigError(CasdError):
    """A configuration value, name or combination that cannot work; raised before any model is built."""


class CorpusError(CasdError):
    """Text that is missing, unreadable, empty, or too little for the splits that were asked for."""


class ModelError(CasdError):
    """A model or tokenizer that cannot be found, read or used."""


class StoreError(CasdError):
    """A stage on disk that is damaged, or that could not be written."""


class TrainingStopped(CasdError):
    """Training that gives no model of use: its loss is not finite, or ended too high. What was finished before is kept."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
