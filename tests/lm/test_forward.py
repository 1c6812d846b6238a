"""The plain Hugging Face forward pass gives what the bridge gives, on every architecture it is used for."""

from types import SimpleNamespace

import pytest
import tiny_models
import torch

from sae_lm.errors import ModelError
from sae_lm.lm.capture import trial_size
from sae_lm.lm.forward import BLOCKS, open_forward
from sae_lm.lm.hooks import canonical_hook, expand_hooks
from sae_lm.lm.source import find_model

pytestmark = pytest.mark.transformer_lens_3


@pytest.fixture(scope="module")
def save_model(tmp_path_factory, tiny_model):
    """architecture -> folder of a tiny random model of it, with the tiny model's tokenizer."""
    return lambda architecture: tiny_models.save(
        architecture, tmp_path_factory.mktemp(architecture), tiny_model, initializer_range=None
    )


def run(folder, kind, ids, mask=None, hooks=("blocks.*.hook_in", "blocks.*.hook_out"), dtype=torch.float32):
    with open_forward(find_model(str(folder)), hooks, kind=kind, device="cpu", dtype=dtype) as forward:
        assert forward.attention.startswith(kind)
        return {name: value.clone() for name, value in forward(ids, mask).items()}


def test_no_library_installs_a_package_while_a_model_is_loaded(save_model, monkeypatch):
    import subprocess

    from sae_lm.lm.bridge import load_model, nothing_installed

    commands = []
    monkeypatch.setattr(subprocess, "check_call", lambda command, **_: commands.append(command) or 0)
    load_model(str(save_model("Gemma3ForConditionalGeneration")), device="cpu")
    assert commands == []  # TransformerLens would have pip install torchvision, and another torch with it
    with nothing_installed():
        with pytest.raises(ModelError, match="pip install torchvision: nothing is installed while a model is loaded"):
            subprocess.check_call(["pip", "install", "torchvision"])
        subprocess.check_call(["true"])
    subprocess.check_call(["pip", "install", "it"])
    assert commands == [["true"], ["pip", "install", "it"]]


def test_every_architecture_with_a_fast_path_is_tested_here():
    assert set(tiny_models.CONFIGS) == set(BLOCKS)


@pytest.mark.parametrize("architecture", sorted(BLOCKS))
def test_the_fast_forward_is_the_bridges(save_model, architecture):
    folder = save_model(architecture)
    ids = torch.randint(1, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    fast, slow = run(folder, "huggingface", ids), run(folder, "bridge", ids)
    assert list(fast) == list(slow) and len(fast) == 6
    for name, value in slow.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-4, atol=2e-5 * float(value.abs().max()))
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, 7:], mask[2, 3:] = 0, 0
    fast, slow = run(folder, "huggingface", ids, mask), run(folder, "bridge", ids, mask)
    for name, value in slow.items():  # what stands on padding is nobody's
        torch.testing.assert_close(
            fast[name][mask.bool()], value[mask.bool()], rtol=1e-4, atol=2e-5 * float(value.abs().max())
        )


@pytest.mark.parametrize(
    "architecture", ["GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM", "Qwen2ForCausalLM"]
)
def test_the_fast_forward_is_hugging_faces_hidden_states_bit_for_bit(save_model, architecture):
    import transformers

    folder = save_model(architecture)
    ids = torch.randint(1, 300, (2, 10), generator=torch.Generator().manual_seed(1))
    fast = run(folder, "huggingface", ids, dtype=torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states
    for layer in range(3):
        assert torch.equal(fast[f"blocks.{layer}.hook_in"], states[layer])
        if layer < 2:  # the last of Hugging Face's hidden states is behind the final norm
            assert torch.equal(fast[f"blocks.{layer}.hook_out"], states[layer + 1])


def test_the_forward_pass_ends_after_the_last_hook(tiny_model):
    with open_forward(find_model(str(tiny_model)), ["0"], kind="auto", device="cpu", dtype=torch.float32) as forward:
        later = forward.blocks[1].register_forward_hook(lambda *_: pytest.fail("block 1 ran"))
        forward(torch.zeros(1, 4, dtype=torch.long))
        later.remove()
        assert forward.attention == "huggingface sdpa"
    assert not forward.blocks[0]._forward_hooks  # nothing of ours stays in the model


def test_a_hook_within_a_block_needs_the_bridge_and_gets_it(tiny_model):
    hooks = ["blocks.1.hook_attn_out", "1"]
    with open_forward(find_model(str(tiny_model)), hooks, kind="auto", device="cpu", dtype=torch.float32) as forward:
        assert forward.attention == "bridge eager"
        assert forward.hooks == {"blocks.1.hook_attn_out": 16, "blocks.1.hook_out": 16}


@pytest.mark.parametrize("hook", ["rotary_emb.hook_cos", "blocks.1.attn.hook_sin"])
def test_a_hook_whose_activation_all_contexts_share_is_refused_before_anything_is_read(hook):
    from sae_lm.lm.bridge import hook_width, load_model

    says = rf"hook {hook} gives a tensor of shape \[1, .* for 2 contexts of 3 tokens, expected \[batch, pos, width\]"
    embedded = open_forward(find_model("embedded"), [hook], kind="auto", device="cpu", dtype=torch.float32)
    with pytest.raises(ModelError, match=says), embedded:
        pass
    with pytest.raises(ModelError, match=says):
        hook_width(load_model("embedded", device="cpu"), hook)


def test_a_trial_pass_has_no_size_that_heads_have():
    for heads in range(1, 9):
        for pairs in range(1, heads + 1):
            config = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=pairs)
            assert len({*trial_size(config), heads}) == 3 and pairs not in trial_size(config)


def test_a_model_without_some_weights_is_refused_instead_of_drawn_at_random(tiny_model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    model = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with (
        pytest.raises(ModelError, match=r"no weights for h.1.mlp.c_fc.weight"),
        open_forward(find_model(str(model)), ["1"], kind="auto", device="cpu", dtype=torch.float32),
    ):
        pass


def test_patterns_stay_between_two_dots():
    names = ["blocks.0.hook_out", "blocks.0.attn.hook_out", "blocks.1.hook_out", "ln_final.hook_out"]
    assert expand_hooks(["blocks.*.hook_out"], 2) == ["blocks.0.hook_out", "blocks.1.hook_out"]
    assert expand_hooks(["blocks.*.attn.hook_out"], 2) is None  # the model is needed
    assert expand_hooks(["blocks.*.attn.hook_out", "-1"], 2, names) == ["blocks.0.attn.hook_out", "blocks.1.hook_out"]
    assert expand_hooks(["*.hook_out"], 2, names) == ["ln_final.hook_out"]
    assert canonical_hook("blocks.10.hook_resid_pre") == "blocks.10.hook_in"
    with pytest.raises(ModelError, match="'-3' is not a hook point"):
        expand_hooks(["-3"], 2)
