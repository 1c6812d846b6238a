"""What a user can get wrong. Each message is one sentence: what, got, expected, what to do.

    SaeLmError
    ├── SettingsError   a flag, a config file, a combination of settings
    ├── TextError       a data set, a text file, a column
    ├── ModelError      a language model, a tokenizer, a hook name
    ├── StoreError      an activation store: missing, unfinished, damaged, not the one asked for
    ├── SaeError        an SAE directory or a run directory
    └── HubError        the hub cannot be reached, or does not have what was named

The command line prints the message after ``sae-lm: error:`` and exits with 2.
"""


class SaeLmError(Exception):
    """Base of all errors above."""


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
