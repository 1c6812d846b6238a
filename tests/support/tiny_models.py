"""Tiny random models of five architectures in Hugging Face format, with the tiny model's tokenizer."""

import torch

SMALL = {
    "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 300,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 1}
ARCHITECTURES = {
    "GPT2LMHeadModel": (
        "gpt2",
        {
            "n_layer": 3,
            "n_embd": 16,
            "n_head": 2,
            "n_positions": 64,
            "vocab_size": 300,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "initializer_range": 0.3,
        },
    ),
    "GPTNeoXForCausalLM": ("gpt_neox", SMALL),
    "Gemma2ForCausalLM": ("gemma2", {**GROUPED, "head_dim": 8, "sliding_window": 4}),
    "LlamaForCausalLM": ("llama", SMALL),
    "Qwen2ForCausalLM": ("qwen2", GROUPED),
}


def save(architecture, folder, tokenizer):
    """A model whose weights are large enough for its context to matter. Returns the folder."""
    import transformers

    kind, values = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(transformers.AutoConfig.for_model(kind, **values))
    with torch.no_grad():  # random biases and norms, which a fresh model has at 0 and 1
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder
