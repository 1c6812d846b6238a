"""Tiny random models of every architecture with a fast path, in Hugging Face format, with the tiny model's tokenizer."""

import torch

SMALL = {
    "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 300,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
LAYERS = {
    "n_layer": 3,
    "n_embd": 16,
    "n_head": 2,
    "n_positions": 64,
    "vocab_size": 300,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = {
    "BertForMaskedLM": ("bert", SMALL),
    "BertModel": ("bert", SMALL),
    "BloomForCausalLM": ("bloom", {**LAYERS, "hidden_size": 16}),
    "GPT2LMHeadModel": ("gpt2", LAYERS),
    "GPTJForCausalLM": ("gptj", {**LAYERS, "rotary_dim": 4}),
    "GPTNeoForCausalLM": (
        "gpt_neo",
        {**SMALL, "num_layers": 3, "num_heads": 2, "attention_types": [[["global", "local", "global"], 1]]},
    ),
    "GPTNeoXForCausalLM": ("gpt_neox", SMALL),
    "Gemma2ForCausalLM": ("gemma2", {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4}),
    "Gemma3ForCausalLM": ("gemma3_text", {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4}),
    "Gemma3ForConditionalGeneration": (
        "gemma3",
        {
            "text_config": {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4},
            "vision_config": {
                "num_hidden_layers": 1,
                "hidden_size": 8,
                "num_attention_heads": 1,
                "intermediate_size": 8,
                "image_size": 8,
                "patch_size": 4,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 299,
            "boi_token_index": 298,
            "eoi_token_index": 297,
        },
    ),
    "GemmaForCausalLM": ("gemma", {**SMALL, "num_key_value_heads": 1, "head_dim": 8}),
    "LlamaForCausalLM": ("llama", SMALL),
    "MistralForCausalLM": ("mistral", {**SMALL, "num_key_value_heads": 1, "sliding_window": 4}),
    "OPTForCausalLM": ("opt", {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16}),
    "Olmo2ForCausalLM": ("olmo2", SMALL),
    "PhiForCausalLM": ("phi", SMALL),
    "Qwen2ForCausalLM": ("qwen2", {**SMALL, "num_key_value_heads": 1}),
    "Qwen3ForCausalLM": ("qwen3", {**SMALL, "num_key_value_heads": 1, "head_dim": 8}),
}
ARCHITECTURES = ("GPT2LMHeadModel", "GPTNeoXForCausalLM", "Gemma2ForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM")
"""Those that everything else is tried on."""


def save(architecture, folder, tokenizer, initializer_range=0.3):
    """A model whose weights are large enough for its context to matter; None: as large as a fresh one's. Returns the folder."""
    import transformers

    kind, values = CONFIGS[architecture]
    values = {key: value for key, value in values.items() if kind != "gpt_neo" or "hidden_layers" not in key}
    if initializer_range is not None:
        values["initializer_range"] = initializer_range
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(transformers.AutoConfig.for_model(kind, **values))
    with torch.no_grad():  # random biases and norms, which a fresh model has at 0 and 1
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder
