"""sae_lm.load on what is ambiguous or of another kind: one sentence, and nothing guessed."""

from inspect import unwrap

import pytest
import torch
from foreign_saes import FOREIGN, dictionary_learning, linear, llama_config, openai, pick, put, saelens_standard
from refused_saes import edit_config, refusal
from sae_formulas import M, inputs, numbers

import sae_lm
from sae_lm.errors import HubError, SaeError
from sae_lm.sae.load import FORMATS

# --- another kind than is said


@pytest.mark.parametrize("name", FOREIGN)
def test_no_sae_is_read_as_a_format_that_it_is_not(tmp_path, name):
    path, _ = FOREIGN[name][0](tmp_path)
    for other in FORMATS:
        if not name.startswith(other) or (other == "gemma_scope" and "scope_2" in name):
            refusal(path, format=other)


def test_a_format_that_is_none_is_answered_with_those_there_are(tmp_path):
    assert "expected auto, saelens, dictionary_learning" in refusal(tmp_path, format="sae_lens")


def test_a_folder_without_an_sae_says_what_it_holds(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    assert "holds model.bin" in refusal(tmp_path)


def test_a_folder_of_many_saes_names_them_at_all_depths(tmp_path):
    FOREIGN["gemma_scope"][0](tmp_path)
    FOREIGN["saelens topk"][0](tmp_path / "a" / "b")
    FOREIGN["sparsify topk"][0](tmp_path / "c")
    said = refusal(tmp_path)
    for place in ("a/b/sae", "c/layers.9", "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"):
        assert place in said


def test_a_misspelt_sae_beside_others_is_answered_with_the_nearest_first(tmp_path):
    for layer in (1, 2, 11):
        FOREIGN["saelens topk"][0](tmp_path / f"layer_{layer}")
        (tmp_path / f"layer_{layer}" / "sae").rename(tmp_path / f"blocks.{layer}")
    assert "holds blocks.11, blocks.1, " in refusal(tmp_path / "block.11")


# --- what the files leave open


def test_a_folder_misspelt_on_the_way_is_answered_with_those_there(tmp_path, monkeypatch):
    FOREIGN["saelens topk"][0](tmp_path / "runs")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    there = f"{tmp_path} has no rums, but runs, other"
    assert there in refusal(tmp_path / "rums" / "sae") and there in refusal(f"{tmp_path}/rums/deeper/sae")
    assert ". has no rums, but runs, other" in refusal("./rums/sae")
    assert "runs/sae has no layer_1, nor any folder" in refusal("runs/sae/layer_1")
    for name in ("./runs:sae", "runs:sae", f"{tmp_path}/runs:sae"):
        assert "is named with a slash: " in refusal(name) and "runs/sae" in refusal(name)


@pytest.mark.parametrize("name", ["~nosuch/m", "~nosuch/m:layer", "~nosuch:layer"])
def test_the_home_of_nobody_known_is_a_path_that_is_not_there(name):
    with pytest.raises(SaeError, match=f"SAE {name}|SAE '{name}'"):
        sae_lm.load(name)


def test_a_misspelt_path_that_reads_like_a_hub_id_is_answered_with_the_folders_here(tmp_path, monkeypatch):
    FOREIGN["saelens topk"][0](tmp_path / "runs")
    (tmp_path / "quite-other").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae_lm.hub.revision.pin", not_there)
    for name in ("rums/sae", "rums"):
        said = refusal(name)
        assert "not on the hub either" in said and said.endswith("here are the folders runs")


def not_there(*_):
    raise HubError("the hub has it not")


@pytest.mark.parametrize(
    "options",
    [{"hook": 2.5}, {"hook": True}, {"k": "8"}, {"k": 8.0}, {"k": True}, {"input_scale": "2"}, {"format": None}],
)
def test_an_argument_of_another_kind_is_named(tmp_path, options):
    path, _ = FOREIGN["saelens topk"][0](tmp_path)
    load = unwrap(sae_lm.load)  # without the tests' own check of annotations
    (name,) = options
    with pytest.raises(SaeError, match=f"^{name} is {options[name]!r}, a .*; expected "):
        load(path, "cpu", **options)
    with pytest.raises(SaeError, match="^path is None"):
        load(None)


def test_a_layer_may_be_given_by_its_number(tmp_path):
    path, _ = FOREIGN["saelens topk"][0](tmp_path)
    for layer in (3, "3"):
        assert sae_lm.load(path, "cpu", hook=layer).config.metadata["hook_name"] == "blocks.3.hook_out"


def test_a_loose_file_whose_hook_nobody_says_asks_for_it(tmp_path):
    path = openai(tmp_path, "_v5_32k", activation="ReLU").rename(tmp_path / "8.pt")
    assert "give hook='blocks.8.hook_out'" in refusal(path)
    sae = sae_lm.load(path, "cpu", hook="blocks.8.hook_resid_post")
    assert (
        sae.config.metadata["hook_name"] == "blocks.8.hook_out" and "hook blocks.8.hook_out as given" in sae.provenance
    )
    assert sae_lm.load(path, "cpu", hook="8").config.metadata["hook_name"] == "blocks.8.hook_out"
    assert "is not known" in refusal(path, hook="somewhere")


def test_a_submodule_of_no_known_name_asks_for_the_hook(tmp_path):
    n = numbers()
    path = dictionary_learning(tmp_path, "AutoEncoder", linear(n) | {"bias": n["b_dec"]}, submodule_name=None)
    assert "(layer 4 of what is not said)" in refusal(path)
    path = path.rename(tmp_path / "mlp_out_layer_4")
    assert sae_lm.load(path, "cpu").config.metadata["hook_name"] == "blocks.4.hook_mlp_out"


def test_two_classes_with_the_same_tensors_are_not_told_apart_by_guessing(tmp_path):
    n = numbers()
    path = tmp_path / "sae.pt"
    torch.save(linear(n) | {"b_dec": n["b_dec"], "k": torch.tensor(3), "threshold": torch.tensor(0.5)}, path)
    said = refusal(path, hook="4")
    assert "format='dictionary_learning/AutoEncoderTopK' or format='dictionary_learning/BatchTopKSAE'" in said
    for name, architecture in (("AutoEncoderTopK", "topk"), ("BatchTopKSAE", "jumprelu")):
        sae = sae_lm.load(path, "cpu", hook="4", format=f"dictionary_learning/{name}")
        assert sae.config.architecture == architecture


def test_a_threshold_that_was_never_set_is_told_and_k_takes_its_place(tmp_path):
    n = numbers()
    state = linear(n) | {"b_dec": n["b_dec"], "k": torch.tensor(3), "threshold": torch.tensor(-1.0)}
    path = dictionary_learning(tmp_path, "BatchTopKSAE", state, k=3)
    sae = sae_lm.load(path, "cpu")
    assert any("was never set" in sentence and "give k=3" in sentence for sentence in sae.provenance)
    x = inputs()
    assert torch.equal(sae.encode(x) > 0, sae.pre_activations(x) > 0)
    assert ((sae_lm.load(path, "cpu", k=3).encode(x) > 0).sum(1) <= 3).all()


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_of_all_latents_is_any_number_and_nothing_else(tmp_path, name):
    path, _ = FOREIGN[f"dictionary_learning {name}"][0](tmp_path)
    state = torch.load(path / "ae.pt")

    def put(threshold):
        torch.save({**state, "threshold": threshold}, path / "ae.pt")

    for threshold in (1, 0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(1)):
        put(threshold)
        assert (sae_lm.load(path, "cpu").threshold == float(threshold)).all()
    for threshold in (None, "0.5", True, float("nan"), torch.tensor(float("inf")), torch.full((M,), 0.5), 10**400, 3j):
        put(threshold)
        assert "; give k=3 to keep the k largest" in refusal(path)
        assert sae_lm.load(path, "cpu", k=2).config.k == 2


@pytest.mark.parametrize("k", [torch.tensor([]), torch.tensor([3, 4]), "3", None])
def test_a_k_that_is_not_needed_may_be_anything(tmp_path, k):
    path, _ = FOREIGN["dictionary_learning BatchTopKSAE"][0](tmp_path)
    torch.save(torch.load(path / "ae.pt") | {"k": k, "threshold": torch.tensor(-1.0)}, path / "ae.pt")
    assert any("give k=... to keep the k largest" in sentence for sentence in sae_lm.load(path, "cpu").provenance)


def test_an_average_norm_is_a_number_wherever_it_stands(tmp_path):
    n, key = numbers(), "dataset_average_activation_norm.in"
    tensors = {"W_E": n["W_enc"], "b_E": n["b_enc"], "W_D": n["W_dec"], "b_D": n["b_dec"]}
    put(tmp_path, "config.json", llama_config(act_fn="topk"))
    for usable in (2, 2.0, torch.tensor(2.0)):
        torch.save({"sae": {**tensors, key: usable}}, tmp_path / "sae.pt")
        sae = sae_lm.load(tmp_path / "sae.pt", "cpu", format="llama_scope")
        assert "norm folded: input times 1.22474, output divided by 1.22474" in sae.provenance
    for norm in (torch.tensor([1.0, 2.0]), 10**400, -1, True, "1.7", {}, None, 3j):
        torch.save({"sae": {**tensors, key: norm}}, tmp_path / "sae.pt")
        assert "expected a number above 0; give input_scale=" in refusal(tmp_path / "sae.pt", format="llama_scope")


def test_four_tensors_alone_do_not_say_how_they_are_used(tmp_path):
    n = numbers()
    torch.save(pick(n, "W_enc", "b_enc", "W_dec", "b_dec"), tmp_path / "sae.pt")
    assert "do not tell whether b_dec is subtracted" in refusal(tmp_path / "sae.pt", hook="4")
    n = numbers(d=M)
    torch.save(pick(n, "W_enc", "b_enc", "W_dec", "b_dec"), tmp_path / "square.pt")
    assert "square" in refusal(tmp_path / "square.pt", hook="4", k=2)
    sae = sae_lm.load(tmp_path / "square.pt", "cpu", hook="4", k=2, format="qwen_scope")
    assert torch.equal(sae.W_enc, n["W_enc"].T)


def test_a_qwen_file_out_of_its_repository_asks_for_k(tmp_path):
    path, _ = FOREIGN["qwen_scope"][0](tmp_path)
    path = path.rename(tmp_path / "layer7.sae.pt")
    assert "give k=" in refusal(path)
    assert sae_lm.load(path, "cpu", k=2).config.k == 2


def test_a_factor_that_no_file_says_is_asked_for(tmp_path):
    path, formula = FOREIGN["saelens expected_average_only_in"][0](tmp_path)
    (path / "activation_scaler.json").unlink()
    assert "give input_scale=" in refusal(path)
    x = inputs()
    torch.testing.assert_close(
        sae_lm.load(path, "cpu", input_scale=0.7)(x), formula(x)[1].float(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sparsify topk", {"transcode": True}),
        ("sparsify topk", {"skip_connection": True}),
        ("sparsify topk", {"signed": True}),
        ("gemma_scope_2", {"affine_connection": True}),
        ("gemma_scope_2", {"hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output"}),
        ("llama_scope, W_E", {"hook_point_out": "blocks.15.hook_mlp_out"}),
        ("llama_scope, W_E", {"sae_type": "crosscoder"}),
        ("llama_scope, W_E", {"use_glu_encoder": True}),
        ("saelens standard", {"architecture": "skip_transcoder"}),
        ("dictionary_learning AutoEncoder", {"dict_class": "CrossCoder"}),
    ],
)  # fmt: skip
def test_what_no_sae_of_one_activation_can_stand_for_is_refused(tmp_path, name, change):
    path, _ = FOREIGN[name][0](tmp_path)
    edit_config(path, **change)
    refusal(path)


def test_what_is_given_for_nothing_is_refused_rather_than_ignored(tmp_path):
    path, _ = FOREIGN["gemma_scope"][0](tmp_path)
    assert "k=5 is given, but this SAE is jumprelu" in refusal(path, k=5)
    assert "takes activations as they are" in refusal(path, input_scale=0.5)
    assert "only of dictionary_learning" in refusal(path, format="gemma_scope/BatchTopKSAE")
    for scale in (0.0, -1.0, float("nan"), float("inf"), 1e300):
        assert "expected a number above 0" in refusal(path, input_scale=scale)
    path, _ = FOREIGN["openai topk"][0](tmp_path)
    for k in (0, -1, M + 1):
        assert refusal(path, k=k).startswith(f"{path}: k is {k}, a topk SAE")


def test_the_device_may_be_auto_and_a_wrong_one_is_named(tmp_path):
    path, _ = saelens_standard(tmp_path)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert sae_lm.load(path).W_enc.device.type == sae_lm.load(path, device="auto").W_enc.device.type == expected
    with pytest.raises(sae_lm.SaeLmError, match="device is 'gpu'"):
        sae_lm.load(path, "gpu")
    with pytest.raises(sae_lm.SaeLmError, match="device is None"):
        unwrap(sae_lm.load)(path, None)


def test_no_name_of_a_release_is_known_without_saelens(tmp_path):
    if __import__("importlib.util").util.find_spec("sae_lens"):
        pytest.skip("sae_lens is installed")
    assert "known where sae_lens is installed" in refusal("gpt2-small-res-jb:blocks.8.hook_resid_pre")
