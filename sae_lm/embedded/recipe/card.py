"""Write the embedded model's card from the figures of its training, with samples drawn from it."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

GUTENBERG = {
    "anna-karenina": 1399,
    "bleak-house": 1023,
    "brothers-karamazov": 28054,
    "crime-and-punishment": 2554,
    "david-copperfield": 766,
    "dorian-gray": 174,
    "dracula": 345,
    "emma": 158,
    "great-expectations": 1400,
    "huckleberry-finn": 76,
    "middlemarch": 145,
    "pride-and-prejudice": 1342,
    "sherlock-holmes": 1661,
    "war-and-peace": 2600,
}
"""File stem -> Project Gutenberg number of the novels the committed model was trained on."""

PROMPTS = ("Return a new", "The following", "class Parser(", "She looked at him and", "If the value is")


def write_card(
    folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, training: dict[str, Any]
) -> None:
    """Write README.md beside the weights. training: see sae_lm.embedded.recipe.train.finish."""
    books = ", ".join(f"{name} ({GUTENBERG.get(name, 'not from Gutenberg')})" for name in training["books"]) or "none"
    config = model.config
    samples = "\n".join(f"```\n{text}\n```" for text in sample(model, tokenizer))
    card = f"""\
# The embedded model of sae_lm

A small Llama for trying things without a network, trained by `python -m sae_lm.embedded.recipe.train`.

| | |
|---|---|
| architecture | Llama, {config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads, SwiGLU {config.intermediate_size}, tied embeddings, {training["parameters"]:,} parameters stored in bfloat16 |
| tokenizer | byte-level BPE, {config.vocab_size} tokens, trained on the same text; `<|endoftext|>` begins every context and separates documents |
| context | {config.max_position_embeddings} tokens |
| documentation | training split of `sae_lm.embedded.text` on Python {training["python"]}: {training["documentation_tokens"]:,} tokens, {training["documentation_share"]:.0%} of the crops |
| novels | {training["book_tokens"]:,} tokens, the rest of the crops; public domain, Project Gutenberg numbers: {books} |
| training | {training["steps"]} steps, {training["tokens_seen"]:,} tokens, Muon (lr {training["lr"]:g}) and AdamW, bfloat16 autocast, {training["minutes"]:.0f} minutes, seed {training["seed"]} |
| machine | {training["machine"]}, torch {training["torch"]} |

Held-out documentation ({training["held_out_tokens"]:,} tokens of documents never trained on), nats per token:

| model | cross-entropy |
|---|---|
| this model | {training["loss"]:.3f} |
| best smoothed bigram (interpolated Kneser-Ney; discount and weight of the novels chosen on the held-out text itself) | {training["bigram"]:.3f} |
| unigram | {training["unigram"]:.3f} |

The model is {training["bigram"] - training["loss"]:.2f} nats per token better than the best bigram. The tokens are the same for
all three; start and separator tokens are not scored.

Samples (temperature 0.7, top-k 40, seeds 0 to {len(PROMPTS) - 1}, not chosen):

{samples}

The text is documentation and old novels: the model knows little else, and repeats their biases.
"""
    (folder / "README.md").write_text(card, encoding="utf-8")


def sample(model: Any, tokenizer: Any, length: int = 60) -> list[str]:
    """One continuation per prompt, drawn with fixed seeds."""
    texts = []
    for seed, prompt in enumerate(PROMPTS):
        torch.manual_seed(seed)
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        drawn = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=True, temperature=0.7, top_k=40
        )
        texts.append(tokenizer.decode(drawn[0], skip_special_tokens=True).replace("```", "'''"))
    return texts
