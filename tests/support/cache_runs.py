"""What tests of caching share: a store as its files, settings as flags."""


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flags(settings):
    """The command line that has these settings."""
    pairs = {name: value for name, value in settings.model_dump(mode="json").items() if value is not None}
    shown = {name: ",".join(value) if isinstance(value, list) else value for name, value in pairs.items()}
    return [
        f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}" + ("" if isinstance(value, bool) else f"={value}")
        for name, value in shown.items()
    ]  # fmt: skip
