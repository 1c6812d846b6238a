"""Read SAEs of Gemma Scope (the first): ``params.npz``, of which the repository's name says all else.

JumpReLU with a threshold per latent; b_dec is not subtracted from the input. SAEs of embeddings were trained on
embeddings as they are stored, and the hook shows them times sqrt(d_in): that factor is folded in, into b_dec too. SAELens
leaves b_dec as it is, and so rebuilds (sqrt(d_in) - 1) b_dec too little.
"""

import math
import re

from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.source import Source

WEIGHTS = "params.npz"
_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoder)")
_HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
_NAMES = ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"]


def read(source: Source) -> SAE:
    """Raises SaeError for what is missing, damaged, or not told by the repository's name."""
    arrays = source.tensors(WEIGHTS)
    renamed = {("W_" + name[2:]) if name.startswith("w_") else name: value for name, value in arrays.items()}
    path, found = from_repository(source.identity, _REPOSITORY, 3)
    if "transcoder" in path:
        raise source.error("is a transcoder, which no SAE of one activation can stand for")
    source.needs(renamed, _NAMES)
    weights = source.numbers(renamed, _NAMES)
    d_in, d_sae = source.matrix(weights["W_enc"], "W_enc")
    hook, metadata = None, {}
    if found:
        metadata["model_name"] = f"google/gemma-2-{found[1]}" + ("-it" if found[2] == "it" else "")
        source.note(f"model {metadata['model_name']} from the repository's name")
        layer = re.search(r"layer_(\d+)", path)
        if found[3] == "res" and "embedding" in path:
            hook = "hook_embed"
        elif layer:
            hook = f"blocks.{layer[1]}.{_HOOKS[found[3]]}"
    bridge, original = source.place(hook, "the repository's name" if found else "no file or name")
    if bridge == "hook_embed" and "embedding" in path:
        weights["W_enc"] = weights["W_enc"] / math.sqrt(d_in)
        weights |= {name: weights[name] * math.sqrt(d_in) for name in ("W_dec", "b_dec")}
        source.note(
            f"input scaled: W_enc / sqrt({d_in}), W_dec and b_dec * sqrt({d_in}), which SAELens leaves b_dec without"
        )
    if l0 := re.search(r"average_l0_(\d+)", path):
        metadata["claimed_l0"] = int(l0[1])
    source.note("b_dec not subtracted from the input: Gemma Scope")
    metadata |= {"hook_name": bridge, "original_hook_name": original}
    config = SaeConfig(architecture="jumprelu", d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=False, metadata=metadata)
    return source.finish("gemma_scope", config, weights)


def from_repository(path: str, name: re.Pattern[str], depth: int) -> tuple[str, re.Match[str] | None]:
    """(the path from the repository's name on, that name), or its last ``depth`` folders and None.

    What stands above says nothing of the SAE: it is how someone has named a folder of his disk.
    """
    found = [*name.finditer(path)]
    return (path[found[-1].start() :], found[-1]) if found else ("/".join(path.split("/")[-depth:]), None)
