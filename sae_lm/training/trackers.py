"""Write the log of a training run: always to a JSON Lines file, and to wandb or TensorBoard where asked for."""

import json
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sae_lm.errors import SaeError, SettingsError
from sae_lm.runtime.files import parse_json, write_whole
from sae_lm.training.run_folder import STATE_FOLDER

Write = Callable[[dict[str, Any]], None]


def check_trackers(trackers: tuple[str, ...]) -> None:
    """Raises SettingsError for a tracker whose library is not installed: before the work, not hours into it."""
    from importlib.util import find_spec

    for name in trackers:
        if find_spec(name) is None:
            raise SettingsError(
                f"trackers names {name}, whose library is not installed; pip install {name}, or leave it out "
                "(the log is written in any case)"
            )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, in order; none where there is no log."""
    return [_parsed(path, line) for line in _lines(path)] if path.exists() else []


def _lines(path: Path) -> list[str]:
    """With their ends. Raises SaeError for what is no text."""
    try:
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError) as problem:
        raise SaeError(f"log {path} cannot be read ({problem}); move it away, the SAE does not need it") from None


def _parsed(path: Path, line: str) -> dict[str, Any]:
    """One line of a log. Raises SaeError for what is none."""
    try:
        value = parse_json(line)
    except ValueError:
        value = None
    step = value.get("step") if isinstance(value, dict) else None
    if not isinstance(value, dict) or isinstance(step, bool) or not isinstance(step, int):
        raise SaeError(f"log {path} holds the line {line[:80]!r}, expected a JSON object with a step; delete that line")
    return value


class Track:
    """Where the log of one SAE goes."""

    def __init__(self, path: Path, trackers: tuple[str, ...], configuration: dict[str, Any]) -> None:
        """path: the file ``ARM-seedN.metrics.jsonl``. configuration: what trackers show as that of the run."""
        self.path, self.trackers, self.configuration = path, trackers, configuration

    @contextmanager
    def begin(self, first: int) -> Iterator[Write]:
        """A function that takes one line. What a killed run wrote from step ``first`` on, beyond its checkpoint, goes."""
        name = self.path.name.partition(".metrics.")[0]
        with ExitStack() as opened:
            writes = [opened.enter_context(_json_lines(self.path, first))]
            if "tensorboard" in self.trackers:
                writes.append(opened.enter_context(_tensorboard(self.path.parent / "tensorboard" / name, first)))
            if "wandb" in self.trackers:
                writes.append(opened.enter_context(_wandb(self.path.parent, name, self.configuration, first)))

            def write(line: dict[str, Any]) -> None:
                for one in writes:
                    one(line)

            yield write


@contextmanager
def _json_lines(path: Path, first: int) -> Iterator[Write]:
    kept = []
    if first and path.exists():
        kept = [line for line in _lines(path) if line.endswith("\n") and _parsed(path, line)["step"] < first]
    write_whole(path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))
    with path.open("a", encoding="utf-8") as file:

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line, sort_keys=True) + "\n")
            file.flush()

        yield write


@contextmanager
def _tensorboard(folder: Path, first: int) -> Iterator[Write]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=first) as writer:

        def write(line: dict[str, Any]) -> None:
            for name, value in _numbers(line).items():
                writer.add_scalar(name, value, line["step"])
            writer.flush()

        yield write


@contextmanager
def _wandb(out: Path, name: str, configuration: dict[str, Any], first: int) -> Iterator[Write]:
    """A run of its own for each SAE, all of a folder in one group. A training that goes on goes on with its run."""
    import wandb

    kept = out / STATE_FOLDER / f"{name}.wandb"
    run_id = kept.read_text(encoding="utf-8").strip() if first and kept.exists() else uuid.uuid4().hex
    write_whole(kept, lambda temporary: temporary.write_text(run_id, encoding="utf-8"))
    before = sys.exit, sys.excepthook  # wandb puts its own in their places, and leaves them there
    try:
        # project, entity and mode are what WANDB_PROJECT and so on say
        with wandb.init(
            dir=out, id=run_id, resume="allow", group=out.name, name=name, config=configuration, reinit="create_new"
        ) as run:
            yield lambda line: run.log(_numbers(line), step=line["step"])
    finally:
        sys.exit, sys.excepthook = before


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in line.items() if isinstance(value, int | float) and name not in ("step", "seed")
    }
