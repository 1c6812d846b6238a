"""Settings of the pipeline: demo, estimate, cache, train, compare."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from sae_lm.fields import (
    Architecture,
    Costs,
    Count,
    DeviceMap,
    Dtype,
    Hooks,
    Names,
    Numbers,
    Positional,
    Share,
    StoreAddress,
    parse_count,
    split_commas,
)
from sae_lm.settings.base import Settings


class CacheSettings(Settings):
    """text -> activation store: run a language model over text and keep what its hooks see."""

    model: str = "embedded"
    """language model: `embedded`, a directory, or a hub id"""
    revision: str | None = None
    """branch, tag or commit of a hub model"""
    text: str = "embedded"
    """`embedded`, a .txt/.jsonl/.parquet/.csv file (.gz, .zst) or a folder of them, or a hub data set id"""
    split: str | None = None
    """split of the data set (default: `all` for embedded, `train` elsewhere)"""
    text_column: str | None = None
    """column that holds text, chats or token ids (default: `text`; else `messages`, `conversations`, `input_ids`, or the only
    string column)"""
    hooks: Hooks
    """residual streams to cache, comma separated, all in one forward pass: names (blocks.3.hook_out, alias
    hook_resid_post), layer numbers (3, or -1 for the last), globs (blocks.*.hook_out)"""
    tokens: Count
    """rows to cache, exactly"""
    context_size: Annotated[int, BeforeValidator(parse_count), Field(ge=2)] = 128
    """tokens per context, the leading special token included"""
    prepend_bos: bool = True
    """begin every context with the tokenizer's BOS (or CLS) token"""
    pack: bool = True
    """lay documents end to end, so that contexts cross from one into the next; with --no-pack every document begins
    a context of its own, and what is left of its last one is padding"""
    repeat: bool = False
    """begin the text again when it ends; without it the store then has fewer rows"""
    keep_special: bool = False
    """keep rows of special tokens (BOS, separators, marks of chats) as well; padding never has rows"""
    drop_sinks: Annotated[float, Field(gt=1)] | None = None
    """leave out tokens whose norm is beyond this multiple of the hook's median (attention sinks; 10 is usual)"""
    forward: Literal["auto", "huggingface", "bridge"] = "auto"
    """whose forward pass: the plain Hugging Face model with its own attention kernels (fast), the TransformerBridge
    (any hook, any model), or `auto`: the former where the hooks and the architecture allow"""
    dtype: Dtype = "bfloat16"
    """dtype of the stored rows"""
    model_dtype: Dtype = "float32"
    """dtype the language model runs in"""
    batch_size: Count = 32
    """contexts per forward pass"""
    shard_tokens: Count = 65_536
    """rows per shard, at most; rounded down to whole contexts"""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`, `cuda:1`, `mps`"""
    device_map: DeviceMap | None = None
    """lay a model that is larger than one card over all of them, instead of `device`: `auto`, `balanced`, `balanced_low_0`,
    `sequential`, as accelerate does"""
    out: Path
    """the store's folder"""


class EstimateSettings(CacheSettings):
    """what a cache would cost before it starts: rows, bytes, free space, time from a short trial."""

    trial: Annotated[float, Field(gt=0)] = 5.0
    """seconds of the trial"""
    out: Path = Path(".")
    """where the store would be: on which disk the free space counts"""


class TrainSettings(Settings):
    """store -> SAE directories: train arms x seeds on the same batches, from the store alone."""

    store: StoreAddress
    """activation store to train on: a folder, or hf://datasets/OWNER/NAME[@REVISION]"""
    hook: str | None = None
    """which hook of the store (default: its only one)"""
    d_sae: Annotated[int, BeforeValidator(parse_count), Field(ge=2)] = 4096
    """latents"""
    k: Count = 32
    """active latents per token: exactly with topk, on average with batchtopk and matryoshka, aimed at with relu and jumprelu"""
    arch: Architecture = "topk"
    """architecture: `topk`, `batchtopk`, `matryoshka` (nested batchtopk), `relu` (L1), `jumprelu`"""
    widths: Numbers | None = None
    """matryoshka: latents of each nested prefix, comma separated, ascending, the last is d_sae
    (default: 1/32, 3/32, 7/32, 15/32 and all of them, Bussmann et al. 2025)"""
    sparsity_coefficient: Annotated[float, Field(gt=0)] | None = None
    """relu, jumprelu: weight of L1 or L0 in the loss (default: a controller finds the one that gives k active latents)"""
    bandwidth: Annotated[float, Field(gt=0)] = 0.03
    """jumprelu: width of the window around a threshold in which it learns; activations have variance 1"""
    arms: Names = ("none", "abs_cos", "max_cos")
    """arms to compare, comma separated: penalty[:coefficient][@option=value]...; ladders as max_cos:0.1/0.25/1 or none@k=16/32;
    a coefficient of 1 weighs the penalty like the error of predicting the mean"""
    seeds: Count = 3
    """runs per arm; runs of one seed share initial weights, batches and their order"""
    first_seed: Annotated[int, BeforeValidator(parse_count), Field(ge=0)] = 0
    """number of the first of them: seeds that an earlier look at the data did not use"""
    registered: Path | None = None
    """TOML file that fixes settings and claims before the first SAE; `compare` answers the claims"""
    tokens: Count | None = None
    """rows each SAE sees (default: every training row of the store once, or again until it is 2000 batches)"""
    batch_size: Count | None = None
    """rows per step (default: 1024; 512 if `tokens` is below 500,000, where more steps give a lower error)"""
    lr: Annotated[float, Field(gt=0)] | None = None
    """peak learning rate (default: .08 / sqrt(width of the rows) * sqrt(batch_size / 512), the root at most 2; three fifths for adam)"""
    optimizer: Literal["row_rms", "adam"] = "row_rms"
    """row_rms: one mean square per latent, no momentum; adam: with --no-whiten as the field does"""
    whiten: bool = True
    """take the encoder's gradient with whitened rows, so that its steps do not follow the few directions that vary most"""
    warm_up: Share = 0.05
    """share of the steps in which the learning rate rises"""
    decay: Share = 0.2
    """share of the steps, at the end, in which it falls to 0"""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """share of the store, at its end, that is kept out of training for `compare`"""
    penalty_every: Count = 10
    """steps for which a penalty's gradient is used before it is taken anew"""
    penalty_start: Share = 0.0
    """share of the steps before the penalty begins"""
    penalty_warm_up: Share = 0.0
    """share of the steps over which its coefficient then rises from 0"""
    penalty_on: Literal["decoder", "encoder"] = "decoder"
    """whose rows the penalty looks at; `encoder` is the control"""
    aux_coefficient: Annotated[float, Field(ge=0)] = 1 / 32
    """weight of AuxK, the loss that revives dead latents"""
    aux_k: Count | None = None
    """dead latents that AuxK lets explain the error (default: d_in / 2)"""
    dead_after: Count | None = None
    """rows without firing after which a latent counts as dead in training (default: a tenth of `tokens`, at most 10M)"""
    resample_every: Annotated[int, BeforeValidator(parse_count), Field(ge=0)] = 0
    """steps between resamplings of dead latents from badly reconstructed rows; 0 never (Bricken et al. 2023)"""
    matmul: Literal["auto", "float32", "bfloat16"] = "auto"
    """precision of products that may be rough: the encoder's, which selects latents (the selected values are float32),
    AuxK's, and penalties' without `@exact`. `auto`: as the folder's SAEs were begun; for the first ones bfloat16 where the
    device has it, float32 where it would imitate it, slowly"""
    log_every: Count = 50
    """steps between lines of the log, ARM-seedN.metrics.jsonl"""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 300.0
    """seconds between checkpoints, from which a killed run goes on"""
    arms_at_once: Count | None = None
    """arms of a seed that are trained together (default: all; of several processes, or with `parallel`, as many as let
    it end earliest)"""
    parallel: Count = 1
    """groups of arms trained at once on the CPU, which is faster: each has its part of the threads. An accelerator, and
    each of torchrun's processes, takes one group after another"""
    ranks_per_sae: Count = 1
    """under torchrun: processes that train one SAE together, each on its slice of every batch"""
    trackers: Annotated[tuple[Literal["wandb", "tensorboard"], ...], BeforeValidator(split_commas)] = ()
    """where else the lines of the log go: `wandb`, `tensorboard`, or both"""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`"""
    out: Path
    """folder for the run directories"""

    @property
    def seed_numbers(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)


class CompareSettings(Settings):
    """run directories -> report.json, report.html: what the penalty changed, with intervals."""

    runs: Annotated[Path, Positional]
    """folder written by `sae-lm train`; or any folder of SAEs of one hook, with --store"""
    out: Path
    """folder for the report"""
    store: StoreAddress | None = None
    """activation store, if it was moved since training"""
    model: str | None = None
    """language model for the cross-entropy (default: the one the store was cached from; `none` to leave it out)"""
    hook: str | None = None
    """of SAEs of other programs: their hook, where their files do not say; those of another are left out"""
    baseline: str = "none"
    """arm the others are compared with (of SAEs of other programs: a name in the folder, by default the first)"""
    tokens: Annotated[int, BeforeValidator(parse_count), Field(ge=2)] = 65_536
    """held-out rows for L0, FVU, dead latents; at most"""
    ce_contexts: Count = 256
    """held-out contexts for the cross-entropy; at most"""
    per_type: Count = 16
    """occurrences per token type in the concept data; at most"""
    min_words: Count = 8
    """words with a concept that it needs for its test, a fifth of all there are"""
    labels: Path | None = None
    """CSV file of further concepts: columns token (exact text) or string, label, and if wanted child"""
    contextual: bool = True
    """concepts of a token's place as well (inside brackets, first on its line, ...)"""
    prompts: bool = False
    """token concepts on prompts of BOS and one token each (the vocabulary, or 65,536 of it) instead of on the held-out text"""
    probe_gate: Share = 0.6
    """F1 on unseen words a concept's probe needs"""
    split_gain: Share = 0.03
    """F1 a further latent must add to count as a split (tau of the sae-spelling rule)"""
    max_k: Count = 10
    """latents tried per concept"""
    rank_latents: Literal["l1_probe", "f1", "both"] = "l1_probe"
    """by what latents are ranked before they are tried: the weights of an L1 probe, as in sae-spelling, or how well each
    one's firing tells the concept, by F1; `both`: figures are of the probe, and what is claimed has to hold by both"""
    equivalence: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """difference of a share (hole rate, fraction) below which an arm counts as equivalent to the baseline, if shown"""
    fvu_cost: Costs = (0.005,)
    """costs in FVU above the baseline's, comma separated, at which families of arms are compared; besides the greatest
    that both of two reach, where that is another test"""
    narrower: Path | None = None
    """folder of SAEs trained with the same settings but fewer latents: which of them became several here"""
    composition: bool = False
    """train a meta-SAE on every decoder, and on random directions, for the composition rate and its null; takes longer than
    all else together"""
    controls: bool = True
    """measure a perfect SAE and spoilt copies of the baseline too: which outcomes put them in order"""
    seed: int = 0
    """seed of everything drawn in the evaluation"""
    parallel: Count = 1
    """SAEs measured at once on the CPU, each by a process with one thread; as many as there are cores is fastest. Linux
    alone; elsewhere, and on an accelerator, one comes after another"""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`"""
    device_map: DeviceMap | None = None
    """lay the language model over all cards, as in `cache`; SAEs stay on `device`"""


class DemoSettings(Settings):
    """the whole pipeline on the embedded model and text; `demo toy`: worlds whose truth is known."""

    what: Annotated[Literal["pipeline", "toy"], Positional] = "pipeline"
    """`pipeline` or `toy`"""
    out: Path = Path("sae_lm_demo")
    """folder for the store, the runs and the report; a store and SAEs that are there already are reused"""
    full: bool = False
    """toy: every arm, with curves over coefficients, instead of a short list; about a quarter of an hour"""
    seeds: Annotated[int, BeforeValidator(parse_count), Field(ge=2)] = 6
    """toy: runs per arm"""
