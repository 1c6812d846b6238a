"""Train the embedded language model: the recipe behind ``sae_lm/embedded/model``.

    python -m sae_lm.embedded.recipe.train --text DIR_OF_TXT --work WORKDIR --out MODEL_DIR [--steps 2500]

A Llama of 4 layers x 256 with a byte-level BPE of 4096 tokens, trained on random crops of the
embedded text's training split and of the ``*.txt`` files under DIR_OF_TXT (without ``--text`` on
the embedded text alone). Matrices of the blocks are trained with Muon, embeddings and norms with
AdamW, everything with one warm-up and a linear decay to zero. The crop of a step is a function of
(seed, step) alone, so a run that was killed continues from its last checkpoint with the same data.
At the end the held-out documentation is scored, beside a unigram and the best of several smoothed
bigram models on the same tokens, and the folder is written: config, bf16 weights, tokenizer, card.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_lm.embedded import MODEL_DIR
from sae_lm.embedded.text import embedded_documents

END = "<|endoftext|>"
VOCABULARY = 4096
CONTEXT = 256


class Corpus(NamedTuple):
    """Token streams, documents joined by the end-of-text token (which also begins each document)."""

    documentation: np.ndarray
    books: np.ndarray
    held_out: np.ndarray
    book_names: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sae_lm.embedded.recipe.train", description="Train the embedded language model."
    )
    parser.add_argument("--text", type=Path, help="folder of .txt files to train on besides the documentation")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for tokens, checkpoint and log; reused to resume"
    )
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="where the Hugging Face folder is written")
    parser.add_argument("--steps", type=int, default=2500, help="optimizer steps of 8192 tokens")
    parser.add_argument("--batch-size", type=int, default=32, help=f"crops of {CONTEXT} tokens a step")
    parser.add_argument("--documentation-share", type=float, default=0.3, help="share of crops from documentation")
    parser.add_argument("--lr", type=float, default=0.02, help="Muon's peak learning rate; AdamW's is a fifth of it")
    parser.add_argument(
        "--dropout", type=float, default=0.15, help="on embeddings and on what blocks add to the stream"
    )
    parser.add_argument("--weight-decay", type=float, default=0.1, help="of the blocks' matrices")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile (no C++ compiler at hand)")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer, corpus = prepare(args.text, args.work)
    share = args.documentation_share if len(corpus.books) else 1.0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(architecture())
    model.to(device)  # pyright: ignore[reportArgumentType]
    optimizers = make_optimizers(model, args.lr, args.weight_decay)
    step, seconds = load_checkpoint(args.work / "checkpoint.safetensors", model, optimizers)
    if step:
        print(f"resuming after step {step}, {seconds / 60:.1f} minutes in")
    add_dropout(model, args.dropout)
    loss_of = training_loss if args.no_compile else torch.compile(training_loss)

    bar = tqdm(range(step, args.steps), initial=step, total=args.steps, unit="step")
    began = time.monotonic() - seconds
    for step in bar:
        rate = schedule(step, args.steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        torch.manual_seed(args.seed * 1_000_003 + step)  # what dropout draws is a function of (seed, step) too
        ids = crops(corpus, share, args.batch_size, args.seed, step).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_of(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
            with (args.work / "log.jsonl").open("a") as log:
                elapsed = time.monotonic() - began
                log.write(json.dumps({"step": step, "loss": loss.item(), "seconds": round(elapsed, 1)}) + "\n")
        if (step + 1) % args.checkpoint_every == 0 or step + 1 == args.steps:
            save_checkpoint(args.work / "checkpoint.safetensors", model, optimizers, step + 1, time.monotonic() - began)
    finish(model, tokenizer, corpus, args, time.monotonic() - began)


def architecture() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )


def add_dropout(model: LlamaForCausalLM, share: float) -> None:
    """Dropout as GPT-2 has it, which the Llama of transformers leaves out: half a megatoken of documentation,
    read several times, is otherwise learned by heart (2.06 nats on training documents, 3.50 on held-out ones)."""

    def drop(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.nn.functional.dropout(output, share, training=model.training)

    if share:
        model.model.embed_tokens.register_forward_hook(drop)
        blocks: Any = model.model.layers
        for layer in blocks:
            layer.self_attn.o_proj.register_forward_hook(drop)
            layer.mlp.down_proj.register_forward_hook(drop)


def training_loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    logits = model(ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def schedule(step: int, steps: int, warm_up: int = 100) -> float:
    """Learning-rate factor: linear warm-up, then linear decay to 2% of the peak."""
    return min(1.0, (step + 1) / warm_up) * max(0.02, 1 - step / steps)


def make_optimizers(model: LlamaForCausalLM, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=lr, momentum=0.95, nesterov=True, weight_decay=weight_decay)
    adam = torch.optim.AdamW(others, lr=lr / 5, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


# --- data


def prepare(text: Path | None, work: Path) -> tuple[PreTrainedTokenizerFast, Corpus]:
    """Train the tokenizer and tokenize everything, or read both back from the work folder."""
    documents = embedded_documents()
    books = sorted(text.glob("*.txt")) if text else []
    if text and not books:
        raise SystemExit(f"--text {text} holds no .txt file; give a folder of plain-text files")
    tokenizer_file, tokens_file = work / "tokenizer.json", work / "tokens.safetensors"
    if not tokenizer_file.exists():
        train_tokenizer([d.text for d in documents if not d.held_out], books).save(str(tokenizer_file))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), bos_token=END, eos_token=END)
    if not tokens_file.exists():
        streams = {
            "documentation": encode(tokenizer, [d.text for d in documents if not d.held_out]),
            "books": encode(tokenizer, [book.read_text(encoding="utf-8") for book in books]),
            "held_out": encode(tokenizer, [d.text for d in documents if d.held_out]),
        }
        save_file({name: torch.from_numpy(stream) for name, stream in streams.items()}, tokens_file)
    with safe_open(tokens_file, "np") as tokens:
        streams = {name: tokens.get_tensor(name) for name in tokens.keys()}  # noqa: SIM118 (not a dict)
    return tokenizer, Corpus(**streams, book_names=[book.stem for book in books])


def train_tokenizer(documentation: list[str], books: list[Path]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )

    def texts() -> Iterator[str]:
        yield from documentation * 3  # the text the model is for; the books are ten times its size
        yield from (book.read_text(encoding="utf-8") for book in books)

    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    if not texts:
        return np.zeros(0, np.int32)
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return np.concatenate([np.array([tokenizer.bos_token_id, *row], np.int32) for row in rows])


def crops(corpus: Corpus, share: float, batch_size: int, seed: int, step: int) -> Tensor:
    """[batch, CONTEXT + 1] ids; a function of (seed, step) alone."""
    rng = np.random.default_rng([seed, step])
    rows = []
    for _ in range(batch_size):
        stream = corpus.documentation if rng.random() < share else corpus.books
        start = int(rng.integers(0, len(stream) - CONTEXT - 1))
        row = stream[start : start + CONTEXT + 1].copy()
        row[0] = 0  # contexts begin with the start token, as they do when activations are cached
        rows.append(row)
    return torch.from_numpy(np.stack(rows)).long()


# --- checkpoint: tensors in safetensors, written aside and renamed


def _slots(
    model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]
) -> Iterator[tuple[str, torch.optim.Optimizer, Tensor]]:
    names = {id(p): name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield names[id(parameter)], optimizer, parameter


def save_checkpoint(
    path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    tensors = {"step": torch.tensor(step), "seconds": torch.tensor(seconds)}
    for name, optimizer, parameter in _slots(model, optimizers):
        tensors[f"parameter:{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"state:{name}:{key}"] = value
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    with safe_open(path, "pt") as saved:
        keys = set(saved.keys())
        for name, optimizer, parameter in _slots(model, optimizers):
            parameter.data.copy_(saved.get_tensor(f"parameter:{name}"))
            prefix = f"state:{name}:"
            for key in keys:
                if key.startswith(prefix):
                    optimizer.state[parameter][key.removeprefix(prefix)] = saved.get_tensor(key).to(parameter.device)
        return int(saved.get_tensor("step")), float(saved.get_tensor("seconds"))


# --- measuring: held-out cross-entropy beside what counting gives


@torch.no_grad()
def cross_entropy(model: LlamaForCausalLM, stream: np.ndarray) -> float:
    """Nats per token over the whole stream, in consecutive contexts whose first token is given.

    The start token replaces the first token of a context, as in training; the tokens it
    replaces are not scored, nor are start tokens between documents.
    """
    total, count = 0.0, 0
    for first in range(0, len(stream) - 1, CONTEXT):
        row = torch.from_numpy(stream[first : first + CONTEXT + 1].astype(np.int64))[None]
        if row.shape[1] < 2:
            break
        row[0, 0] = 0
        losses = torch.nn.functional.cross_entropy(
            model(row[:, :-1].to(model.device)).logits[0].float(),
            row[0, 1:].to(model.device),
            reduction="none",
        )
        scored = row[0, 1:].to(model.device) != 0
        total += float(losses[scored].double().sum())
        count += int(scored.sum())
    return total / count


def unigram_cross_entropy(train: np.ndarray, held_out: np.ndarray) -> float:
    counts = np.bincount(train, minlength=VOCABULARY) + 1.0
    counts[0] = 0  # start tokens are not scored
    return float(-np.log(counts[held_out[held_out != 0]] / counts.sum()).mean())


def bigram_cross_entropy(train: list[tuple[np.ndarray, float]], held_out: np.ndarray, discount: float) -> float:
    """Interpolated Kneser-Ney bigram (Chen & Goodman 1999, section 2.7) on weighted streams."""
    joint = np.zeros((VOCABULARY, VOCABULARY), np.float64)
    for stream, weight in train:
        np.add.at(joint, (stream[:-1], stream[1:]), weight)
    joint[:, 0] = 0  # start tokens are not scored
    kinds = joint > 0
    continuation = (kinds.sum(0) + 0.5) / (kinds.sum() + 0.5 * VOCABULARY)
    total = joint.sum(1, keepdims=True)
    left_over = np.minimum(joint, discount).sum(1, keepdims=True)
    conditional = np.maximum(joint - discount, 0) + left_over * continuation
    conditional /= np.maximum(total, 1e-300)
    conditional[total[:, 0] == 0] = continuation
    given, target = held_out[:-1], held_out[1:]
    scored = target != 0
    return float(-np.log(conditional[given[scored], target[scored]]).mean())


def counting_models(corpus: Corpus) -> dict[str, float]:
    """Nats per token of the best unigram and bigram over weights and discounts chosen on the held-out text itself."""
    unigrams = [unigram_cross_entropy(corpus.documentation, corpus.held_out)]
    bigrams = []
    for weight in (0.0, 0.02, 0.05, 0.1, 0.3) if len(corpus.books) else (0.0,):
        streams = [(corpus.documentation, 1.0), (corpus.books, weight)][: 2 if weight else 1]
        bigrams += [
            bigram_cross_entropy(streams, corpus.held_out, discount) for discount in (0.5, 0.65, 0.75, 0.85, 0.95)
        ]
    return {"unigram": min(unigrams), "bigram": min(bigrams)}


# --- the folder


def finish(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    args: argparse.Namespace,
    seconds: float,
) -> None:
    from sae_lm.embedded.recipe.card import write_card

    model.eval().to(torch.bfloat16)  # pyright: ignore[reportArgumentType]  # what is stored is what is scored
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    model.to("cpu", torch.float32)  # pyright: ignore[reportArgumentType]
    training = {
        "loss": cross_entropy(model, corpus.held_out),
        **counting_models(corpus),
        "steps": args.steps,
        "tokens_seen": args.steps * args.batch_size * CONTEXT,
        "documentation_tokens": len(corpus.documentation),
        "book_tokens": len(corpus.books),
        "held_out_tokens": int((corpus.held_out != 0).sum()),
        "documentation_share": args.documentation_share if len(corpus.books) else 1.0,
        "books": corpus.book_names,
        "minutes": seconds / 60,
        "seed": args.seed,
        "lr": args.lr,
        "dropout": args.dropout,
        "parameters": sum(p.numel() for p in model.parameters()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} cores, {'GPU' if torch.cuda.is_available() else 'no GPU'}",
    }
    write_card(args.out, model, tokenizer, training)
    print(json.dumps({k: round(v, 4) if isinstance(v, float) and math.isfinite(v) else v for k, v in training.items()}))


if __name__ == "__main__":
    main()
