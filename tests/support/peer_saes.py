"""SAEs written by other libraries' own functions, beside what their own classes compute; whatever libraries are installed.

    for name, case in peer_cases(): path, encode, forward = case(folder)

The libraries do not go together in one environment: see sae_lm/sae/README.md for which run where.
"""

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import foreign_saes
import torch
from foreign_saes import FOREIGN
from sae_formulas import D, K, M
from torch import Tensor

Case = tuple[Path, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""(path of the SAE, its own encode, its own reconstruction)"""


def peer_cases() -> Iterator[tuple[str, Callable[[Path], Case]]]:
    if find_spec("sae_lens"):
        yield from _saelens()
        yield from _saelens_converters()
    if find_spec("dictionary_learning"):
        yield from _dictionary_learning()
    if find_spec("sparsify"):
        yield from ((f"sparsify's SparseCoder, {name}", _sparsify(name)) for name in ("topk", "groupmax"))


def filled(module, n=None):
    """Random parameters, thresholds above 0."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(values.abs() if "threshold" in name else values)
    return module


# --- SAELens


def _saelens() -> Iterator[tuple[str, Callable[[Path], Case]]]:
    from sae_lens.registry import get_sae_class

    kinds = {
        "standard": {},
        "standard without b_dec": {"apply_b_dec_to_input": False},
        "topk": {"k": K, "rescale_acts_by_decoder_norm": True},
        "topk, unscaled": {"k": K},
        "jumprelu": {},
        "gated": {},
        "gated layer_norm": {"normalize_activations": "layer_norm"},
        "topk layer_norm": {"k": K, "normalize_activations": "layer_norm"},
        "jumprelu constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"},
        "standard hook_z": {"reshape_activations": "hook_z"},
    }

    def case(name, options):
        def make(folder):
            cls, config = get_sae_class(name.split()[0].strip(","))
            sae = cls(config(d_in=D, d_sae=M, **options))
            sae.cfg.metadata.hook_name = f"blocks.1.{'attn.hook_z' if 'hook_z' in name else 'hook_resid_post'}"
            filled(sae).save_model(str(folder / "sae"))
            if "hook_z" not in name:
                return folder / "sae", sae.encode, sae
            heads = lambda x: x.view(len(x), 2, D // 2)  # noqa: E731
            return folder / "sae", lambda x: sae.encode(heads(x)), lambda x: sae(heads(x)).flatten(1)

        return make

    yield from ((f"SAELens' {name}", case(name, options)) for name, options in kinds.items())
    for name in ("batchtopk", "matryoshka_batchtopk"):
        yield f"SAELens' {name}, saved for inference", _saelens_trained(name)
    for name in ("saelens before 6", "saelens before 6, topk"):
        yield f"SAELens' reading of {name}", _loaded_by_saelens(name)


def _saelens_trained(name):
    def make(folder):
        from sae_lens import SAE
        from sae_lens.registry import get_sae_training_class

        cls, config = get_sae_training_class(name)
        more = {"matryoshka_widths": [4, M]} if name.startswith("matryoshka") else {}
        sae = filled(cls(config(d_in=D, d_sae=M, k=K, **more)))
        sae.topk_threshold.fill_(0.9)
        sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
        sae.save_inference_model(str(folder / "sae"))
        theirs = SAE.load_from_disk(str(folder / "sae"))
        return folder / "sae", theirs.encode, theirs

    return make


def _loaded_by_saelens(name):
    def make(folder):
        from sae_lens import SAE

        path, _ = FOREIGN[name][0](folder)
        theirs = SAE.load_from_disk(str(path))
        return path, theirs.encode, theirs

    return make


def _saelens_converters() -> Iterator[tuple[str, Callable[[Path], Case]]]:
    """What SAELens makes of other formats' files, where its converter reads them right."""
    gemma = "google/gemma-scope-2b-pt-res"
    table = {
        "gemma_scope": ("gemma_2_sae_huggingface_loader", gemma, "layer_20/width_16k/average_l0_71"),
        "gemma_scope_2": ("gemma_3_sae_huggingface_loader", "google/gemma-scope-2-1b-pt", "resid_post/layer_12_width_16k_l0_big"),
        "qwen_scope": ("qwen_scope_sae_huggingface_loader", f"Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}", "layer7.sae.pt"),
        "goodfire": ("get_goodfire_huggingface_loader", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
                     "Llama-3.1-8B-Instruct-SAE-l19.pth"),
        "dictionary_learning AutoEncoder": ("dictionary_learning_sae_huggingface_loader_1", "canrager/lm_sae", "trainer_0"),
        "dictionary_learning AutoEncoderTopK": ("dictionary_learning_sae_huggingface_loader_1", "canrager/lm_sae", "trainer_0"),
        "dictionary_learning GatedAutoEncoder": ("dictionary_learning_sae_huggingface_loader_1", "canrager/lm_sae", "trainer_0"),
        "dictionary_learning BatchTopKSAE": ("dictionary_learning_sae_huggingface_loader_1", "canrager/lm_sae", "trainer_0"),
        "llama_scope, unit rows": ("llama_scope_sae_huggingface_loader", "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x"),
    }  # fmt: skip
    yield from ((f"SAELens' converter of {name}", _converted(name, *how)) for name, how in table.items())


def _converted(name, converter, repository, place):
    def make(folder):
        from sae_lens import SAE
        from sae_lens.loading import pretrained_sae_loaders as loaders

        path = _unit_llama_scope(folder) if name.startswith("llama") else FOREIGN[name][0](folder)[0]
        base = path if path.is_dir() else path.parent

        def here(repo_id, filename, subfolder=None, **_):
            inside = f"{subfolder}/{filename}" if subfolder else filename
            return str(base / inside.removeprefix(f"{place}/"))

        kept = loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes
        loaders.hf_hub_download = here
        loaders.get_safetensors_tensor_shapes = lambda *_: {"w_enc": (D, M), "w_dec": (M, D)}
        try:
            widths = {"d_in": D, "d_sae": M, "dtype": "float32"}
            config, state, _ = getattr(loaders, converter)(repository, place, "cpu", False, widths)
        finally:
            loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = kept
        config = loaders.handle_config_defaulting(config)
        cls = SAE.get_sae_class_for_architecture(config["architecture"])
        theirs = cls(SAE.get_sae_config_class_for_architecture.__func__(cls, config["architecture"]).from_dict(config))
        theirs.load_state_dict(state)
        if name.startswith("llama"):
            theirs.fold_activation_norm_scaling_factor(D**0.5 / 1.7)
        return path, theirs.encode, theirs

    return make


def _unit_llama_scope(folder):
    """With decoder rows of norm 1: SAELens leaves the norms out of account."""
    original = foreign_saes.numbers
    foreign_saes.numbers = lambda: {**(n := original()), "W_dec": torch.nn.functional.normalize(n["W_dec"], dim=1)}
    try:
        return foreign_saes.llama_scope_1(folder)[0]
    finally:
        foreign_saes.numbers = original


# --- dictionary_learning


def _dictionary_learning() -> Iterator[tuple[str, Callable[[Path], Case]]]:
    from dictionary_learning import dictionary as d
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    made = {
        d.AutoEncoder: (D, M),
        d.AutoEncoderNew: (D, M),
        d.GatedAutoEncoder: (D, M),
        d.JumpReluAutoEncoder: (D, M),
        top_k.AutoEncoderTopK: (D, M, K),
        batch_top_k.BatchTopKSAE: (D, M, K),
        matryoshka_batch_top_k.MatryoshkaBatchTopKSAE: (D, M, K, [4, 8]),
    }

    def case(cls, sizes, threshold):
        def make(folder):
            sae = filled(cls(*sizes))
            if "threshold" in dict(sae.named_buffers()):
                sae.threshold.fill_(threshold)
            folder = folder / "trainer_0"
            folder.mkdir()
            torch.save(sae.state_dict(), folder / "ae.pt")  # as training.py does
            trainer = {
                "dict_class": cls.__name__,
                "k": K,
                "layer": 3,
                "lm_name": "x/y",
                "submodule_name": "resid_post_layer_3",
            }
            (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 64}}))
            extra = {"normalize_decoder": False} if cls is d.AutoEncoder else {"k": K} if len(sizes) > 2 else {}
            theirs = cls.from_pretrained(str(folder / "ae.pt"), **extra)
            return folder, theirs.encode, theirs

        return make

    yield from ((f"dictionary_learning's {cls.__name__}", case(cls, sizes, 0.8)) for cls, sizes in made.items())
    yield "dictionary_learning's BatchTopKSAE, threshold -1", case(batch_top_k.BatchTopKSAE, (D, M, K), -1.0)


# --- sparsify


def _sparsify(activation):
    def make(folder):
        from sparsify import SparseCoder, SparseCoderConfig

        config = SparseCoderConfig(activation=activation, k=K, expansion_factor=2)
        filled(SparseCoder(D, config)).save_to_disk(folder / "layers.9")
        theirs = SparseCoder.load_from_disk(folder / "layers.9")

        def encode(x):
            acts, indices, pre = theirs.encode(x)
            return torch.zeros_like(pre).scatter_(1, indices, acts)

        return folder / "layers.9", encode, lambda x: theirs(x).sae_out

    return make


def read_by_peers(folder: Path, target: str):
    """(encode, reconstruction) of an exported directory by the target's own classes."""
    if target == "saelens":
        from sae_lens import SAE

        sae = SAE.load_from_disk(str(folder))
        return sae.encode, sae
    if target == "sparsify":
        from sparsify import SparseCoder

        coder = SparseCoder.load_from_disk(folder)

        def encode(x):
            acts, indices, pre = coder.encode(x)
            return torch.zeros_like(pre).scatter_(1, indices, acts)

        return encode, lambda x: coder(x).sae_out
    from dictionary_learning import dictionary as d
    from dictionary_learning.trainers import top_k

    name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    cls = getattr(d, name, None) or getattr(top_k, name)
    sae = cls.from_pretrained(str(folder / "ae.pt"))  # as load_dictionary does
    return sae.encode, sae
