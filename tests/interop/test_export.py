"""Files for dashboards, automated interpretation and steering of other tools, each read by a plain reader of its format."""

import csv
import importlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import HOOK, WORDS, random_contexts, random_sae, write_sae, write_store
from safetensors.numpy import load_file

from sae_lm.cli import main
from sae_lm.commands.export import CODES, export
from sae_lm.data.store import Store
from sae_lm.errors import ModelError, SaeError, SettingsError
from sae_lm.interop.delphi import _ranges
from sae_lm.interop.neuronpedia import check_upload
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.load import load
from sae_lm.sae.model import SAE
from sae_lm.settings import ExportSettings

SIZE, D_SAE = 12, 300


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(tmp_path_factory.mktemp("store") / "store", random_contexts(30, SIZE, 0), per_shard=7)


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SAE]:
    folder = tmp_path_factory.mktemp("sae") / "sae"
    sae = random_sae(len(WORDS), D_SAE, 5, 1)
    save(sae, folder)
    return folder, sae


@pytest.fixture
def settings(store: Store, sae: tuple[Path, SAE], tmp_path: Path) -> Any:
    def make(to: str, **changes: Any) -> ExportSettings:
        given = {"sae": str(sae[0]), "to": to, "out": tmp_path / "out", "device": "cpu"}
        rows = {} if to == "gguf" or "strength" in changes else {"store": str(store.path)}
        return ExportSettings(**{**given, **rows, **changes})

    return make


def dense(store: Store, sae: SAE) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """(activations of every row, token, context, position), the slow way."""
    columns = store.tokens()
    acts = torch.stack([sae.encode(row) for row in store.rows(HOOK).float()])
    return acts, *(columns[name].numpy() for name in ("token_id", "context", "position"))


def batches(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"batch-{n}.json").read_text()) for n in range(len([*out.glob("batch-*.json")]))]


def at_every_position(store: Store, values: torch.Tensor) -> np.ndarray:
    """[contexts, pos]: values of rows where their tokens stand, 0 where a token has no row."""
    columns, out = store.tokens(), np.zeros((store.manifest.contexts, SIZE))
    out[columns["context"].numpy(), columns["position"].numpy()] = values.numpy()
    return out


def test_neuronpedias_batches_hold_the_best_contexts_of_every_latent_that_fires(
    settings: Any, store: Store, sae: tuple[Path, SAE], tmp_path: Path
) -> None:
    export(settings("neuronpedia", name="My Set"))
    acts, context = dense(store, sae[1])[0], store.tokens()["context"].numpy()
    read = batches(tmp_path / "out")
    assert all(body["modelId"] == "tiny" and body["source"] == "1-my-set" for body in read)
    assert all(1 <= len(body["features"]) <= 128 for body in read)
    features = {feature["index"]: feature for body in read for feature in body["features"]}
    assert sorted(features) == (acts > 0).any(0).nonzero().flatten().tolist()
    texts = np.array(WORDS, dtype=object)
    for latent, feature in features.items():
        assert feature["density"] == pytest.approx(float((acts[:, latent] > 0).float().mean()))
        best = sorted((-acts[context == c, latent].max().item(), c) for c in np.unique(context))
        best = [c for value, c in best if value < 0][:20]
        assert len(feature["activations"]) == len(best)
        for c, activation in zip(best, feature["activations"], strict=True):
            assert activation["tokens"] == texts[store.blocks()[c].numpy()].tolist()
            expected = at_every_position(store, acts[:, latent])[c].tolist()
            assert activation["values"] == pytest.approx(expected, abs=1e-3)


def upload(**changes: Any) -> dict[str, Any]:
    feature = {"index": 3, "density": 0.1, "topLogits": [], "bottomLogits": [], "explanations": []}
    feature |= {"activations": [{"tokens": ["a", "b"], "values": [0.0, 1.0]}]}
    return {"modelId": "m", "source": "1-s", "features": [{**feature, **changes}]}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"activations": []}, "latent 3 has no example"),
        ({"activations": [{"tokens": ["a"], "values": []}]}, "1 tokens and 0 values"),
        ({"activations": [{"tokens": ["a"] * 1025, "values": [0.0] * 1025}]}, "1025 tokens"),
        ({"activations": [{"tokens": [""], "values": [1.0]}]}, "a token is empty"),
        ({"activations": [{"tokens": ["a"], "values": [float("nan")]}]}, "a value is no number"),
        ({"topLogits": [{"token": "a", "value": 1.0}] * 21}, "topLogits has 21"),
        ({"bottomLogits": [{"token": "", "value": 1.0}]}, "an empty one"),
        ({"explanations": [{"text": "x" * 513}]}, "longer than 512"),
        ({"density": 1.5}, "density is 1.5"),
    ],
)
def test_what_neuronpedia_would_refuse_is_refused_here(changes: dict[str, Any], part: str) -> None:
    check_upload(upload())
    with pytest.raises(SaeError, match=part):
        check_upload(upload(**changes))


def test_a_batch_has_at_most_128_latents_and_each_once() -> None:
    one = upload()["features"][0]
    with pytest.raises(SaeError, match="has 129 latents"):
        check_upload({"features": [{**one, "index": i} for i in range(129)]})
    with pytest.raises(SaeError, match="twice"):
        check_upload({"features": [one, one]})


DASHBOARD = {
    "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson",
    "correlated_features_indices", "correlated_features_l1", "correlated_features_pearson",
    "neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero", "freq_hist_data_bar_values",
    "freq_hist_data_bar_heights", "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "n_prompts_total",
    "n_tokens_in_prompt", "dataset", "decoder_weights_dist", "activations", "vector",
}  # fmt: skip
SEQUENCE = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}


def test_saedashboards_batches_have_its_keys_and_its_groups_by_equal_intervals(
    settings: Any, store: Store, sae: tuple[Path, SAE], tmp_path: Path
) -> None:
    export(settings("saedashboard"))
    acts = dense(store, sae[1])[0]
    out, seen = tmp_path / "out", []
    for body in batches(out):
        assert {k: body[k] for k in ("model_id", "layer", "sae_set", "sae_id_suffix")} == {
            "model_id": "tiny", "layer": 1, "sae_set": "sae-lm", "sae_id_suffix": None,
        }  # fmt: skip
        for feature in body["features"]:
            assert set(feature) == DASHBOARD
            latent, column = feature["feature_index"], acts[:, feature["feature_index"]]
            seen.append(latent)
            largest, fires = float(column.max()), column[column > 0]
            assert sum(feature["freq_hist_data_bar_heights"]) == len(fires)
            assert feature["vector"] == pytest.approx(sae[1].W_dec[latent].tolist())
            groups: dict[tuple[float, float], float] = {}
            for sequence in feature["activations"]:
                assert set(sequence) == SEQUENCE and len(sequence["tokens"]) == len(sequence["values"]) <= SIZE
                value = sequence["values"][sequence["qualifying_token_index"]]
                assert sequence["bin_min"] - 1e-3 <= value <= sequence["bin_max"] + 1e-3
                groups[sequence["bin_min"], sequence["bin_max"]] = sequence["bin_contains"]
            assert groups.pop((-1, largest), None) == -1
            assert all(high - low == pytest.approx(largest / 5) for low, high in groups)
            if len(fires) <= 40 and len(fires) == len(fires.unique()):  # all of them were drawn
                assert sum(groups.values()) == pytest.approx(1)
    skipped = json.loads((out / "skipped_indexes.json").read_text())["skipped_indexes"]
    assert sorted([*seen, *skipped]) == list(range(D_SAE))


def delphis_loader(folder: Path, latents: torch.Tensor) -> dict[int, tuple[list[Any], list[float], np.ndarray]]:
    """What delphi makes of a cache when some latents are asked for: which file, then entries by latent."""
    edges = sorted(tuple(map(int, file.stem.split("_"))) for file in folder.glob("*.safetensors"))
    boundaries = [edges[0][0], *(end + 1 for _, end in edges)]
    buckets = torch.bucketize(latents, torch.tensor(boundaries), right=True)
    read = {}
    for bucket in buckets.unique().tolist():
        start, end = boundaries[bucket - 1], boundaries[bucket]
        data = load_file(folder / f"{start}_{end - 1}.safetensors")
        locations = data["locations"].astype(np.int64)
        locations[:, 2] += start
        for latent in latents[buckets == bucket].tolist():
            of = locations[:, 2] == latent
            read[latent] = (locations[of, :2].tolist(), data["activations"][of].tolist(), data["tokens"])
    return read


def test_delphis_cache_gives_every_latent_its_places_activations_and_tokens(
    settings: Any, store: Store, sae: tuple[Path, SAE], tmp_path: Path
) -> None:
    export(settings("delphi"))
    acts, _, context, position = dense(store, sae[1])
    folder = tmp_path / "out" / "latents" / HOOK
    for latent, (places, values, tokens) in delphis_loader(folder, torch.arange(D_SAE)).items():
        rows = acts[:, latent].nonzero().flatten().numpy()
        assert places == [[int(context[r]), int(position[r])] for r in rows]
        assert values == pytest.approx(acts[rows, latent].tolist(), rel=1e-3)
        assert tokens.tolist() == store.blocks().tolist()
    config = json.loads((folder / "config.json").read_text())
    assert config["cache_ctx_len"] == SIZE and config["n_tokens"] == 30 * SIZE and config["model_name"] == "owner/tiny"
    assert {file.stem for file in folder.glob("*.safetensors")} == {"0_127", "128_255", "256_299"}


def test_part_of_a_store_begins_with_a_whole_context(settings: Any, store: Store, tmp_path: Path) -> None:
    export(settings("delphi", tokens=40))
    folder = tmp_path / "out" / "latents" / HOOK
    tokens = load_file(next(folder.glob("*.safetensors")))["tokens"]
    assert tokens.tolist() == store.blocks(30 - len(tokens), 30).tolist() and 2 <= len(tokens) <= 4


@pytest.mark.parametrize(
    ("firing", "ranges"),
    [
        ([0, 5, 9], [(0, 4), (4, 8), (8, 10)]),
        ([9], [(0, 10)]),
        ([0], [(0, 10)]),
        ([0, 9], [(0, 4), (4, 10)]),
        ([4], [(0, 10)]),
    ],
)
def test_delphis_files_leave_no_latent_out_and_none_is_empty(firing: list[int], ranges: list[Any]) -> None:
    fires = np.zeros(10, np.int64)
    fires[firing] = 1
    assert _ranges(fires, 4) == ranges


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A plain reader of GGUF 3, as far as a control vector goes: strings, uint32, float32 tensors."""
    content = path.read_bytes()
    at = 0

    def take(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, content, at)
        at += struct.calcsize("<" + form)
        return value

    def text() -> str:
        nonlocal at
        length = take("Q")
        at += length
        return content[at - length : at].decode()

    assert content[:4] == b"GGUF"
    at = 4
    assert take("I") == 3
    tensors, keys = take("Q"), take("Q")
    values: dict[str, Any] = {}
    for _ in range(keys):
        name, kind = text(), take("I")
        values[name] = text() if kind == 8 else take({4: "I", 5: "i"}[kind])
    places = {}
    for _ in range(tensors):
        name = text()
        shape = [take("Q") for _ in range(take("I"))]
        assert take("I") == 0  # float32
        places[name] = (shape, take("Q"))
    at += -at % values.get("general.alignment", 32)
    data = {n: np.frombuffer(content, "<f4", int(np.prod(shape)), at + off) for n, (shape, off) in places.items()}
    return values, data


def test_a_control_vector_is_the_decoder_row_of_its_block(settings: Any, sae: tuple[Path, SAE], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (path,) = export(settings("gguf", latents=(7,), name="llama"))
    values, tensors = read_gguf(path)
    assert values["general.architecture"] == "controlvector"
    assert values["controlvector.model_hint"] == "llama" and values["controlvector.layer_count"] == 1
    assert [*tensors] == ["direction.1"]
    np.testing.assert_array_equal(tensors["direction.1"], sae[1].W_dec[7].numpy())
    reader = importlib.import_module("gguf").GGUFReader(str(path))
    np.testing.assert_array_equal(reader.tensors[0].data, sae[1].W_dec[7].numpy())


def test_without_the_package_gguf_a_sentence_says_so(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sae_lm.interop.steering_files")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(SaeError, match="run pip install gguf"):
        export(settings("gguf", latents=(7,)))


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_an_sae_that_rescales_each_activation_has_no_control_vector(settings: Any, tmp_path: Path, norm: str) -> None:
    sae = random_sae(len(WORDS), 10, 2, 0)
    sae.config = replace(sae.config, normalize_activations=norm)
    save(sae, tmp_path / "normal")
    with pytest.raises(SaeError, match=rf"rescales each activation \({norm}\), so that no one vector"):
        export(settings("gguf", sae=str(tmp_path / "normal"), latents=(7,)))
    assert not [*(tmp_path / "out").iterdir()]


def test_the_first_block_has_no_control_vector(settings: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    save(random_sae(len(WORDS), 10, 2, 0, hook_name="blocks.0.hook_out"), tmp_path / "first")
    with pytest.raises(SaeError, match="block 0, which llama.cpp's control vectors leave out"):
        export(settings("gguf", sae=str(tmp_path / "first"), latents=(7,)))


def test_the_harness_reads_a_csv_whose_sae_gives_the_row_and_the_bias(
    settings: Any, store: Store, sae: tuple[Path, SAE], tmp_path: Path
) -> None:
    acts = dense(store, sae[1])[0]
    latent = int(acts.max(0).values.argmax())
    (path,) = export(settings("lm-eval", latents=(latent,), module="h.1"))
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["loader"], row["action"], row["hookpoint"]) == ("sparsify", "add", "h.1")
    assert float(row["steering_coefficient"]) == pytest.approx(float(acts[:, latent].max()))
    read = load(Path(row["sparse_model"]) / row["hookpoint"], "cpu", hook=HOOK)
    index = int(row["feature_index"])
    torch.testing.assert_close(read.W_dec[index], sae[1].W_dec[latent])
    torch.testing.assert_close(read.b_dec, sae[1].b_dec)


@pytest.mark.parametrize(
    ("to", "changes", "part"),
    [
        ("gguf", {}, "writes one latent"),
        ("lm-eval", {"latents": (1, 2)}, "writes one latent"),
        ("lm-eval", {"latents": (1,), "store": None}, "needs a --strength, or a --store"),
        ("lm-eval", {"latents": (1,), "strength": 2.0, "module": "../x"}, "no name of a module"),
        ("delphi", {"latents": (1,)}, "--latents is of no use with --to delphi; leave out --latents"),
        ("delphi", {"model": "embedded"}, "--model is of no use with --to delphi"),
        ("gguf", {"latents": (1,), "strength": 8.0}, "--strength is of no use with --to gguf"),
        ("lm-eval", {"latents": (1,), "name": "mine"}, "--name is of no use with --to lm-eval"),
        (
            "lm-eval",
            {"latents": (1,), "strength": 2.0, "store": "s"},
            "--store is of no use .* a --strength; leave out",
        ),
        ("lm-eval", {"latents": (1,), "strength": 2.0, "tokens": 9}, "--tokens is of no use .* with a --strength"),
        ("lm-eval", {"latents": (1,), "strength": 2.0, "codes": Path("c")}, "--codes is of no use .* a --strength"),
        ("delphi", {"store": "acts", "strength": 5.0}, "--strength is of no use with --to delphi"),
        ("saedashboard", {"module": "h.1"}, "--module is of no use with --to saedashboard"),
        ("neuronpedia", {"model": "embedded"}, "unembeds width 256 to 4096 tokens, the SAE and store have width"),
        ("neuronpedia", {"store": None}, "needs a --store"),
        ("saedashboard", {"latents": (D_SAE,)}, "out of range"),
        ("neuronpedia", {"tokens": 3}, "hold no whole context"),
    ],
)
def test_what_a_target_lacks_is_one_sentence(settings: Any, to: str, changes: dict[str, Any], part: str) -> None:
    given = settings(to, **changes)
    with pytest.raises((SettingsError, SaeError, ModelError), match=part):
        export(given)
    assert not (given.out.parent / CODES).exists()  # before the long part of the work


def test_what_is_there_is_not_replaced(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(SettingsError, match="exists already and is not replaced"):
        export(settings("delphi"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_dashboard_names_an_sae_of_any_place_in_a_block_by_its_number(settings: Any, tmp_path: Path) -> None:
    folder = write_store(tmp_path / "mlp", random_contexts(30, SIZE, 0), per_shard=7, hook="blocks.3.hook_mlp_out")
    save(random_sae(len(WORDS), 10, 2, 0, hook_name="blocks.3.hook_mlp_out"), tmp_path / "m")
    export(settings("neuronpedia", sae=str(tmp_path / "m"), store=str(folder.path)))
    assert batches(tmp_path / "out")[0]["source"] == "3-sae-lm"


def test_an_sae_of_another_place_has_no_steering_file(settings: Any, tmp_path: Path) -> None:
    save(random_sae(len(WORDS), 10, 2, 0, hook_name="blocks.1.attn.hook_z"), tmp_path / "z")
    with pytest.raises(SaeError, match="steering files are of the residual stream"):
        export(settings("lm-eval", sae=str(tmp_path / "z"), latents=(1,), strength=1.0))


def test_an_sae_whose_latents_are_silent_is_refused(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="none of the latents fires"):
        write_sae(tmp_path / "by_hand")
        export(settings("neuronpedia", sae=str(tmp_path / "by_hand"), latents=(0,)))  # BOS has no row


def test_the_command_says_what_it_wrote(
    store: Store, sae: tuple[Path, SAE], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(sae[0]), "--to", "neuronpedia", "--store", str(store.path), "--out", str(tmp_path / "o")]
    assert main(words) == 0 and "nothing was uploaded" in capsys.readouterr().out
    assert main(words) == 2
    assert "is not replaced" in capsys.readouterr().err
