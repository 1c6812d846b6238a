"""What a process says that asks the stand-in for the hub, in a few lines of Python, given as a script.

The address of the hub is read when huggingface_hub is imported, so each script runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hub_stand_in import HubStandIn

TOKEN = "hf_not_to_be_shown"

COMMON = """
import json, os, sys, time
from sae_lm.hub import revision as hub
from sae_lm.data.text import open_text
from sae_lm.errors import SaeLmError

said = {}

def note(name, call, *arguments, **options):
    start = time.monotonic()
    try:
        value = call(*arguments, **options)
    except SaeLmError as error:
        value = f"{type(error).__name__}: {error}"
    said[name] = value
    said[name + ", seconds"] = time.monotonic() - start

def pin(*arguments):
    repo_id, revision, local = hub.pin(*arguments)
    return [repo_id, revision, local and str(local)]

def read(*arguments, **options):
    text = open_text(*arguments, **options)
    documents = list(text.documents())
    assert documents == list(text.documents())
    return [text.id, text.split, text.column, text.fingerprint, documents]

def finish():
    print(json.dumps(said))
"""


def run(script: str, hub: HubStandIn, home: Path, endpoint: str | None = None) -> dict[str, Any]:
    """What the script noted by name, and what it wrote to stderr as "stderr"; the token is never shown.

    ``endpoint`` is the hub's address for the script, where that is not the plain one.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "HTTP", "ALL_PROXY"))}
    settings = {
        "HF_ENDPOINT": endpoint or hub.endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # these counts go to a fixed address elsewhere
        "NO_PROXY": "127.0.0.1",
        "TQDM_POSITION": "-1",  # bars in a pipe as well, where they are not switched off
        "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parents[2], Path(__file__).parent])),
    }
    command = [sys.executable, "-c", COMMON + script, str(hub.root)]
    done = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}
