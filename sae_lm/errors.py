"""What a user can get wrong. Each message is one sentence: what, got, expected, what to do.

    SaeLmError
    ├── SettingsError   a flag, a config file, a combination of settings
    ├── TextError       a data set, a text file, a column
    ├── ModelError      a language model, a tokenizer, a hook name
    ├── StoreError      an activation store: missing, unfinished, damaged, not the one asked for
    ├── SaeError        an SAE directory or a run directory
    ├── HubError        the hub cannot be reached, or does not have what was named
    └── Stopped         a signal asked for the end; what is finished is kept

The command line prints the message after ``sae-lm: error:`` and exits with 2; after Stopped, which is
nobody's mistake, with 128 + the signal's number, as a shell reports it.
"""

LONGEST = 4000
"""Characters of a message; what is quoted from a file may be of any length."""


class SaeLmWarning(UserWarning):
    """What a user should know and may go on with; the command line prints it as a note of one line."""


class SaeLmError(Exception):
    """Base of all errors above. What a message quotes cannot break its line, nor tell a terminal what to do."""

    def __init__(self, message: str = "") -> None:
        text = "".join(c if c.isprintable() else " " if c in "\n\xa0" else _escaped(c) for c in str(message))
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class SettingsError(SaeLmError):
    """A setting is unknown, malformed or out of range."""


class TextError(SaeLmError):
    """The text cannot be read as documents."""


class ModelError(SaeLmError):
    """The language model cannot be loaded, or lacks what was asked of it."""


class StoreError(SaeLmError):
    """The folder is not a whole activation store, or not the one expected."""


class SaeError(SaeLmError):
    """The folder is not a whole SAE or run directory, or not the one expected."""


class HubError(SaeLmError):
    """The hub is out of reach, or has no such repository."""


class Stopped(SaeLmError):
    """Work ended early at a safe point because SIGINT or SIGTERM asked for it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
