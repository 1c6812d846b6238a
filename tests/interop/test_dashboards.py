"""What dashboards of other tools show: whole text around a row, and the tokens that the store's own model promotes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hand_made import WORDS, write_sae, write_store

from sae_lm.commands.export import export
from sae_lm.data.store import open_store
from sae_lm.errors import ModelError
from sae_lm.settings import ExportSettings

SEPARATOR = 3
CONTEXTS = [[0, 1, SEPARATOR, 2, 1, 2], [0, 2, 1, SEPARATOR, SEPARATOR, SEPARATOR]]
DASHBOARDS = ["neuronpedia", "saedashboard"]


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    store = write_store(tmp_path / "store", CONTEXTS, scale=1, separator=SEPARATOR)
    write_sae(tmp_path / "sae")
    given = {"sae": str(tmp_path / "sae"), "store": str(store.path), "latents": (2,), "device": "cpu"}
    return lambda to, **changes: ExportSettings(**{**given, "to": to, "out": tmp_path / "out", **changes})


def the_latent(out: Path) -> dict[str, Any]:
    return json.loads((out / "batch-0.json").read_text())["features"][0]


@pytest.mark.parametrize("to", DASHBOARDS)
def test_examples_show_tokens_without_rows_but_no_padding(settings: Any, tmp_path: Path, to: str) -> None:
    export(settings(to))
    first, second = the_latent(tmp_path / "out")["activations"][:2]
    assert first["tokens"] == [WORDS[token] for token in CONTEXTS[1][:4]] and first["values"] == [0, 2, 0, 0]
    assert second["tokens"] == [WORDS[token] for token in CONTEXTS[0]] and second["values"] == [0, 0, 0, 1, 0, 1]
    assert to == "neuronpedia" or (first["qualifying_token_index"], second["qualifying_token_index"]) == (1, 3)


def test_the_model_may_be_none(settings: Any, tmp_path: Path) -> None:
    export(settings("neuronpedia", model="none"))
    assert the_latent(tmp_path / "out")["topLogits"] == []


def test_the_model_is_that_of_the_commit_that_the_store_records(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked = open_store(tmp_path / "store"), []
    store.manifest.recipe.model["revision"] = "f" * 40

    def find_model(*named: Any) -> None:
        asked.append(named)
        raise ModelError("no model")

    monkeypatch.setattr("sae_lm.commands.export.open_store", lambda path: store)
    monkeypatch.setattr("sae_lm.lm.source.find_model", find_model)
    with pytest.raises(ModelError, match="no model"):
        export(settings("neuronpedia", model="owner/tiny"))
    assert asked == [("owner/tiny", "f" * 40)]
