"""SAEs of every foreign format, written by hand as their libraries write them, each beside its formula.

    path, formula = FOREIGN["openai topk"](folder)
    z, x_hat = formula(x)

A formula is written out from the numbers that were drawn, in the plainest way and in float64; it uses nothing of sae_lm.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sae_formulas import (
    BASE,
    D,
    Formula,
    K,
    M,
    above,
    centred,
    gated,
    groupmax,
    layer_normed,
    norm_rescaled,
    numbers,
    pick,
    plain,
    relu,
    topk,
)
from safetensors.torch import save_file

Written = tuple[Path, Formula]


def put(folder: Path, config_name: str, config: dict, tensors: dict | None = None, weights_name: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / config_name).write_text(json.dumps(config))
    if tensors is not None:
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / weights_name)
    return folder


# --- SAELens


def saelens(folder, architecture, tensors, **config) -> Path:
    about = {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post", "model_name": "gpt2"}
    about |= config.pop("metadata", {})
    config = {"architecture": architecture, "d_in": D, "d_sae": M, "dtype": "float32", "metadata": about} | config
    return put(folder, "cfg.json", config, tensors, "sae_weights.safetensors")


def saelens_standard(folder) -> Written:
    n = numbers()
    return saelens(folder / "sae", "standard", pick(n, *BASE), apply_b_dec_to_input=False), plain(n, relu, False)


def saelens_topk(folder) -> Written:
    n = numbers()
    return saelens(folder / "sae", "topk", pick(n, *BASE), k=K), plain(n, topk, True)


def saelens_jumprelu(folder) -> Written:
    n = numbers()
    return saelens(folder / "sae", "jumprelu", pick(n, *BASE, "threshold")), plain(n, above(n["threshold"]), True)


def saelens_gated(folder) -> Written:
    n = numbers()
    names = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")
    return saelens(folder / "sae", "gated", pick(n, *names)), gated(n)


def saelens_layer_norm(folder) -> Written:
    n = numbers()
    path = saelens(folder / "sae", "topk", pick(n, *BASE), k=K, normalize_activations="layer_norm")
    return path, layer_normed(plain(n, topk, True))


def saelens_rescaled(folder) -> Written:
    n = numbers()
    path = saelens(folder / "sae", "standard", pick(n, *BASE), normalize_activations="constant_norm_rescale")
    return path, norm_rescaled(plain(n, relu, True))


def saelens_averaged(folder) -> Written:
    n = numbers()
    path = saelens(folder / "sae", "standard", pick(n, *BASE), normalize_activations="expected_average_only_in")
    (path / "activation_scaler.json").write_text('{"scaling_factor": 0.7}')
    return path, plain(n, relu, True, scale=0.7)


def saelens_centred(folder) -> Written:
    n = numbers()
    about = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    return saelens(folder / "sae", "standard", pick(n, *BASE), metadata=about), centred(plain(n, relu, True))


def saelens_old(folder, **more) -> Written:
    n = numbers()
    config = {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8, "d_in": D,
              "d_sae": M, "dtype": "torch.float32", "normalize_activations": False, "context_size": 128}  # fmt: skip
    tensors = pick(n, *BASE) | {"scaling_factor": torch.ones(M)}
    path = put(folder / "blocks.8.hook_resid_pre", "cfg.json", config | more, tensors, "sae_weights.safetensors")
    return path, plain(n, relu, True)


def saelens_old_topk(folder) -> Written:
    path, _ = saelens_old(folder, activation_fn_str="topk", activation_fn_kwargs={"k": K})
    return path, plain(numbers(), topk, True)


def saelens_batchtopk_checkpoint(folder) -> Written:
    n = numbers()
    tensors = pick(n, *BASE) | {"topk_threshold": torch.tensor(0.9, dtype=torch.float64)}
    path = saelens(folder / "sae", "matryoshka_batchtopk", tensors, k=3.5, rescale_acts_by_decoder_norm=True)
    norm = n["W_dec"].norm(dim=1)
    folded = {"W_enc": n["W_enc"] * norm, "b_enc": n["b_enc"] * norm, "W_dec": n["W_dec"] / norm[:, None]}
    return path, plain({**n, **folded}, above(0.9), True)


def saelens_hook_z(folder) -> Written:
    """Of an activation with an axis of heads, which is flattened."""
    n = numbers()
    about = {"hook_name": "blocks.1.attn.hook_z"}
    path = saelens(folder / "sae", "standard", pick(n, *BASE), metadata=about, reshape_activations="hook_z")
    return path, plain(n, relu, True)


# --- dictionary_learning


def dictionary_learning(folder, name, state, **trainer) -> Path:
    config = {"trainer": {"dict_class": name, "activation_dim": D, "dict_size": M, "layer": 4, "lm_name": "EleutherAI/pythia-70m",
                          "submodule_name": "resid_post_layer_4", **trainer}, "buffer": {"ctx_len": 128}}  # fmt: skip
    path = put(folder / "trainer_0", "config.json", config)
    torch.save(state, path / "ae.pt")
    return path


def linear(n, bias=True):
    state = {"encoder.weight": n["W_enc"].T.contiguous(), "decoder.weight": n["W_dec"].T.contiguous()}
    return state | ({"encoder.bias": n["b_enc"]} if bias else {})


def dl_auto_encoder(folder) -> Written:
    n = numbers()
    return dictionary_learning(folder, "AutoEncoder", linear(n) | {"bias": n["b_dec"]}), plain(n, relu, True)


def dl_auto_encoder_new(folder) -> Written:
    n = numbers()
    return dictionary_learning(folder, "AutoEncoderNew", linear(n) | {"decoder.bias": n["b_dec"]}), plain(
        n, relu, False
    )


def dl_gated(folder) -> Written:
    n = numbers()
    state = linear(n, False) | {
        "decoder_bias": n["b_dec"],
        "r_mag": n["r_mag"],
        "gate_bias": n["b_gate"],
        "mag_bias": n["b_mag"],
    }
    return dictionary_learning(folder, "GatedAutoEncoder", state), gated(n)


def dl_jumprelu(folder) -> Written:
    n = numbers()
    path = dictionary_learning(folder, "JumpReluAutoEncoder", pick(n, *BASE, "threshold"))
    return path, plain(n, above(n["threshold"]), False)


def of_batch(threshold):
    return {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold)}


def dl_topk(folder) -> Written:
    n = numbers()
    state = linear(n) | {"b_dec": n["b_dec"]} | of_batch(0.8)
    return dictionary_learning(folder, "AutoEncoderTopK", state, k=K), plain(n, topk, True)


def dl_batchtopk(folder) -> Written:
    n = numbers()
    state = linear(n) | {"b_dec": n["b_dec"]} | of_batch(0.8)
    return dictionary_learning(folder, "BatchTopKSAE", state, k=K), plain(n, above(0.8), True)


def dl_matryoshka(folder) -> Written:
    n = numbers()
    state = pick(n, *BASE) | of_batch(0.8) | {"group_sizes": torch.tensor([4, 8])}
    return dictionary_learning(folder, "MatryoshkaBatchTopKSAE", state, k=K), plain(n, above(0.8), True)


# --- sparsify


def sparsify(folder, activation) -> Path:
    n = numbers()
    config = {"activation": activation, "expansion_factor": 2, "normalize_decoder": True, "num_latents": 0, "k": K,
              "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D}  # fmt: skip
    tensors = {"encoder.weight": n["W_enc"].T, "encoder.bias": n["b_enc"], "W_dec": n["W_dec"], "b_dec": n["b_dec"]}
    put(folder, "config.json", {"model": "EleutherAI/pythia-160m", "dataset": "some/text", "ctx_len": 2048})
    return put(folder / "layers.9", "cfg.json", config, tensors, "sae.safetensors")


def sparsify_topk(folder) -> Written:
    return sparsify(folder, "topk"), plain(numbers(), topk, True)


def sparsify_groupmax(folder) -> Written:
    return sparsify(folder, "groupmax"), plain(numbers(), groupmax, True)


# --- single files and collections


def openai(folder, version, **activation) -> Path:
    n = numbers()
    path = folder / "gpt2-small" / f"resid_post_mlp{version}" / "autoencoders" / "8.pt"
    path.parent.mkdir(parents=True)
    state = linear(n, False) | {"pre_bias": n["b_dec"], "latent_bias": n["b_enc"]}
    state |= {"stats_last_nonzero": torch.zeros(M, dtype=torch.long), "latents_mean_square": torch.rand(M)}
    torch.save(state | activation, path)
    return path


def openai_topk(folder) -> Written:
    path = openai(folder, "_v5_32k", activation="TopK", activation_state_dict={"k": K, "postact_fn": "ReLU"})
    return path, layer_normed(plain(numbers(), topk, True))


def openai_relu(folder) -> Written:
    return openai(folder, "", activation="ReLU"), plain(numbers(), relu, True)


def gemma_scope(folder, place="layer_20/width_16k/average_l0_71") -> Written:
    n = numbers()
    path = folder / "google" / "gemma-scope-2b-pt-res" / place
    path.mkdir(parents=True)
    np.savez(path / "params.npz", **{name: n[name].numpy() for name in (*BASE, "threshold")})
    return path, plain(n, above(n["threshold"]), False)


def gemma_scope_embedding(folder) -> Written:
    path, _ = gemma_scope(folder, "embedding/width_4k/average_l0_6")
    n = numbers()
    # the hook shows embeddings times sqrt(D), the SAE is of embeddings as they are stored
    return path, plain(n, above(n["threshold"]), False, 1 / math.sqrt(D))


def gemma_scope_2(folder) -> Written:
    n = numbers()
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.12.output",
              "hf_hook_point_out": "model.layers.12.output", "affine_connection": False}  # fmt: skip
    tensors = {name.lower(): n[name] for name in (*BASE, "threshold")}
    path = folder / "google" / "gemma-scope-2-1b-pt" / "resid_post" / "layer_12_width_16k_l0_big"
    return put(path, "config.json", config, tensors, "params.safetensors"), plain(n, above(n["threshold"]), False)


def llama_config(**more):
    return {"d_model": D, "d_sae": M, "expansion_factor": 2, "use_decoder_bias": True, "use_glu_encoder": False,
            "hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post", "act_fn": "jumprelu",
            "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, "top_k": K,
            "apply_decoder_bias_to_pre_encoder": False, **more}  # fmt: skip


def llama_formula(n, fires, average_in, average_out, pre_bias=False) -> Formula:
    """As Language-Model-SAEs computes it; fires: of pre-activations times decoder norm."""
    w = {key: value.double() for key, value in n.items()}
    norm = w["W_dec"].norm(dim=1)

    def formula(x):
        x = x.double() * math.sqrt(D) / average_in
        z = fires(((x - w["b_dec"] * pre_bias) @ w["W_enc"] + w["b_enc"]) * norm) / norm
        return z, (z @ w["W_dec"] + w["b_dec"]) * average_out / math.sqrt(D)

    return formula


def llama_scope_1(folder) -> Written:
    n = numbers()
    path = folder / "Llama3_1-8B-Base-L15R-8x"
    config = llama_config(jump_relu_threshold=0.3, dataset_average_activation_norm={"in": 1.7, "out": 1.7})
    put(path, "hyperparams.json", config)
    (path / "checkpoints").mkdir()
    tensors = {name: value.contiguous() for name, value in (linear(n) | {"decoder.bias": n["b_dec"]}).items()}
    save_file(tensors, path / "checkpoints" / "final.safetensors")
    return path, llama_formula(n, above(0.3 * math.sqrt(D) / 1.7), 1.7, 1.7)


def llama_scope_2(folder) -> Written:
    n = numbers()
    tensors = linear(n) | {"decoder.bias": n["b_dec"], "log_jumprelu_threshold": n["threshold"].log()}
    path = put(
        folder / "L15R", "config.json", llama_config(norm_activation="inference"), tensors, "sae_weights.safetensors"
    )
    return path, llama_formula(n, above(n["threshold"]), math.sqrt(D), math.sqrt(D))


def llama_scope_3(folder) -> Written:
    n = numbers()
    name = "dataset_average_activation_norm.blocks.15.hook_resid_post"
    tensors = {"W_E": n["W_enc"], "b_E": n["b_enc"], "W_D": n["W_dec"], "b_D": n["b_dec"], name: torch.tensor(1.7)}
    tensors["activation_function.log_jumprelu_threshold"] = n["threshold"].log()
    path = put(folder / "sae", "config.json", llama_config(sae_type="sae"), tensors, "sae_weights.safetensors")
    return path, llama_formula(n, above(n["threshold"]), 1.7, 1.7)


def llama_scope_3_topk(folder) -> Written:
    """Ranked by pre-activation times decoder norm: what is chosen is the same, the scale of a latent moves to the encoder."""
    n = numbers()
    tensors = {"W_E": n["W_enc"], "b_E": n["b_enc"], "W_D": n["W_dec"], "b_D": n["b_dec"]}
    config = llama_config(act_fn="topk", norm_activation="token-wise", apply_decoder_bias_to_pre_encoder=True)
    path = put(folder / "sae", "config.json", config, tensors, "sae_weights.safetensors")
    norm = n["W_dec"].norm(dim=1)
    theirs = norm_rescaled(llama_formula(n, topk, math.sqrt(D), math.sqrt(D), pre_bias=True))
    return path, lambda x: (theirs(x)[0] * norm.double(), theirs(x)[1])


def qwen_scope(folder) -> Written:
    n = numbers()
    path = folder / "Qwen" / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}" / "layer7.sae.pt"
    path.parent.mkdir(parents=True)
    torch.save(
        {**pick(n, "b_enc", "b_dec"), "W_enc": n["W_enc"].T.contiguous(), "W_dec": n["W_dec"].T.contiguous()}, path
    )
    return path, plain(n, topk, False)


def goodfire(folder) -> Written:
    n = numbers()
    path = folder / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    state = {"encoder_linear.weight": n["W_enc"].T.contiguous(), "encoder_linear.bias": n["b_enc"]}
    torch.save(state | {"decoder_linear.weight": n["W_dec"].T.contiguous(), "decoder_linear.bias": n["b_dec"]}, path)
    return path, plain(n, relu, False)


def deepseek(folder) -> Written:
    n = numbers()
    path = folder / "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"
    torch.save({key: value.bfloat16() for key, value in (linear(n) | {"decoder.bias": n["b_dec"]}).items()}, path)
    return path, plain({key: value.bfloat16().float() for key, value in n.items()}, relu, False)


def connor_rob(folder) -> Written:
    n = numbers()
    path = folder / "gpt2-small_L5_Hcat_z.pt"
    torch.save(pick(n, *BASE), path)
    config = {"act_name": "blocks.5.attn.hook_z", "act_size": D, "dict_size": M}
    put(folder, "gpt2-small_L5_Hcat_z_cfg.json", config)
    return path, plain(n, relu, True)


FOREIGN: dict[str, tuple[Callable[[Path], Written], str]] = {
    "saelens standard": (saelens_standard, "blocks.1.hook_out"),
    "saelens topk": (saelens_topk, "blocks.1.hook_out"),
    "saelens jumprelu": (saelens_jumprelu, "blocks.1.hook_out"),
    "saelens gated": (saelens_gated, "blocks.1.hook_out"),
    "saelens layer_norm": (saelens_layer_norm, "blocks.1.hook_out"),
    "saelens constant_norm_rescale": (saelens_rescaled, "blocks.1.hook_out"),
    "saelens expected_average_only_in": (saelens_averaged, "blocks.1.hook_out"),
    "saelens centred": (saelens_centred, "blocks.1.hook_out"),
    "saelens before 6": (saelens_old, "blocks.8.hook_in"),
    "saelens before 6, topk": (saelens_old_topk, "blocks.8.hook_in"),
    "saelens matryoshka checkpoint": (saelens_batchtopk_checkpoint, "blocks.1.hook_out"),
    "saelens hook_z": (saelens_hook_z, "blocks.1.attn.hook_z"),
    "dictionary_learning AutoEncoder": (dl_auto_encoder, "blocks.4.hook_out"),
    "dictionary_learning AutoEncoderNew": (dl_auto_encoder_new, "blocks.4.hook_out"),
    "dictionary_learning GatedAutoEncoder": (dl_gated, "blocks.4.hook_out"),
    "dictionary_learning JumpReluAutoEncoder": (dl_jumprelu, "blocks.4.hook_out"),
    "dictionary_learning AutoEncoderTopK": (dl_topk, "blocks.4.hook_out"),
    "dictionary_learning BatchTopKSAE": (dl_batchtopk, "blocks.4.hook_out"),
    "dictionary_learning MatryoshkaBatchTopKSAE": (dl_matryoshka, "blocks.4.hook_out"),
    "sparsify topk": (sparsify_topk, "blocks.9.hook_out"),
    "sparsify groupmax": (sparsify_groupmax, "blocks.9.hook_out"),
    "openai topk": (openai_topk, "blocks.8.hook_out"),
    "openai relu": (openai_relu, "blocks.8.hook_out"),
    "gemma_scope": (gemma_scope, "blocks.20.hook_out"),
    "gemma_scope of embeddings": (gemma_scope_embedding, "hook_embed"),
    "gemma_scope_2": (gemma_scope_2, "blocks.12.hook_out"),
    "llama_scope, hyperparams.json": (llama_scope_1, "blocks.15.hook_out"),
    "llama_scope, encoder.weight": (llama_scope_2, "blocks.15.hook_out"),
    "llama_scope, W_E": (llama_scope_3, "blocks.15.hook_out"),
    "llama_scope, W_E, topk": (llama_scope_3_topk, "blocks.15.hook_out"),
    "qwen_scope": (qwen_scope, "blocks.7.hook_out"),
    "goodfire": (goodfire, "blocks.19.hook_out"),
    "dictionary_learning, DeepSeek-R1": (deepseek, "blocks.19.hook_out"),
    "connor_rob": (connor_rob, "blocks.5.attn.hook_z"),
}
"""Name -> (writer, the bridge's name of its hook)."""
