"""sae_lm.load on what is damaged or forged: one sentence, and nothing executed."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_saes import FOREIGN
from refused_saes import edit_config, refusal, weights_of
from safetensors.torch import load_file, save_file


class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["dictionary_learning AutoEncoder", "openai topk", "qwen_scope", "goodfire"])
def test_a_pickle_with_code_is_refused_and_nothing_is_executed(tmp_path, monkeypatch, name):
    path, _ = FOREIGN[name][0](tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.save({"W_enc": Code()}, weights_of(path))
    assert "nothing of it was executed" in refusal(path)
    weights_of(path).write_bytes(pickle.dumps({"W_enc": Code()}))  # as torch before 1.6, and anybody, writes them
    refusal(path)
    torch.save({"W_enc": Code()}, weights_of(path), _use_new_zipfile_serialization=False)
    assert "nothing of it was executed" in refusal(path)
    assert not Path("executed").exists()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "make",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        lambda tensor: torch.nested.nested_tensor([*tensor]),
        lambda tensor: tensor.to("meta"),
    ],
)
def test_a_tensor_whose_numbers_do_not_lie_side_by_side_is_named(tmp_path, make):
    path, _ = FOREIGN["goodfire"][0](tmp_path)
    state = torch.load(path)
    odd = state | {"encoder_linear.weight": make(state["encoder_linear.weight"])}
    for content in (odd, {"sae": odd}):
        torch.save(content, path)
        assert "encoder_linear.weight is a sparse, nested or meta tensor" in refusal(path)


def test_arrays_of_objects_are_refused_and_nothing_is_executed(tmp_path, monkeypatch):
    path, _ = FOREIGN["gemma_scope"][0](tmp_path)
    monkeypatch.chdir(tmp_path)
    np.savez(path / "params.npz", W_enc=np.array([Code()], dtype=object))
    assert "nothing of it was executed" in refusal(path)
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("left", [0.5, 0.98, 0])
def test_a_file_that_was_cut_short_is_named(tmp_path, name, left):
    path, _ = FOREIGN[name][0](tmp_path)
    file = weights_of(path)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * left)])
    assert file.name in refusal(path)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path):
    path, _ = FOREIGN["gemma_scope"][0](tmp_path)
    with zipfile.ZipFile(path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", bytes(2**27))
    assert "would unpack to" in refusal(path)
    path, _ = FOREIGN["goodfire"][0](tmp_path)
    torch.save({"encoder_linear.weight": torch.zeros(1).expand(2**20, 2**20)}, path)
    assert "claims more numbers than the file holds" in refusal(path)


@pytest.mark.parametrize("name", [name for name in FOREIGN if not name.startswith("gemma_scope of")])
@pytest.mark.parametrize("damage", ["nan", "shape", "dtype", "missing", "extra"])
def test_tensors_that_do_not_fit_are_refused(tmp_path, name, damage):
    path, _ = FOREIGN[name][0](tmp_path)
    file = weights_of(path)
    read = {".safetensors": load_file, ".npz": np.load}.get(file.suffix, torch.load)
    tensors = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in read(file).items()
    }
    key = next(key for key in tensors if "enc" in key.lower() or key == "W_E")
    tensors[key] = {
        "nan": lambda t: torch.full_like(t, float("nan")),
        "shape": lambda t: t[:-1] if t.ndim == 1 else t[:, :-1].contiguous(),
        "dtype": lambda t: t.int(),
    }.get(damage, lambda t: t)(tensors[key])
    if damage == "missing":
        del tensors[key]
    if damage == "extra":
        tensors["another"] = torch.zeros(3)
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    elif file.suffix == ".npz":
        np.savez(file, **{key: value.numpy() for key, value in tensors.items()})
    else:
        torch.save(tensors, file)
    refusal(path)


NONSENSE = [0, -3, 2.5, "many", None, True, [4], 10**15, 10**400, float("nan")]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("saelens topk", "d_in"),
        ("saelens topk", "d_sae"),
        ("saelens topk", "k"),
        ("sparsify topk", "d_in"),
        ("sparsify topk", "expansion_factor"),
        ("sparsify topk", "k"),
        ("llama_scope, W_E, topk", "top_k"),
        ("llama_scope, W_E", "d_model"),
        ("llama_scope, hyperparams.json", "jump_relu_threshold"),
    ],
)
def test_nonsense_in_a_configuration_is_refused(tmp_path, name, key):
    path, _ = FOREIGN[name][0](tmp_path)
    for value in NONSENSE:
        if key == "jump_relu_threshold" and type(value) in (int, float) and value < 10**400:
            continue  # any number may be a threshold
        if key == "k" and name == "saelens topk" and value is None:
            continue  # SAELens then takes 100
        edit_config(path, **{key: value})
        refusal(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"d_in": ', "null", "\x00"])
@pytest.mark.parametrize(
    "name", ["saelens topk", "sparsify topk", "dictionary_learning AutoEncoder", "llama_scope, W_E"]
)
def test_a_configuration_that_is_no_json_object_is_named(tmp_path, name, content):
    path, _ = FOREIGN[name][0](tmp_path)
    (file,) = path.glob("*.json")
    file.write_text(content)
    assert file.name in refusal(path)
