"""Every setting of every command: what it means, what it may be, its default; wrong ones are named in a sentence each.

One frozen pydantic model per command. A field's docstring is its ``--help``; ``sae_lm.cli`` makes flags of the fields.
Built from Python, a model takes what it is given alone: no environment variable, no file, no command line.
"""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sae_lm.errors import SettingsError
from sae_lm.fields import (
    Architecture,
    Costs,
    Count,
    Dtype,
    Hooks,
    Names,
    Numbers,
    Positional,
    Share,
    StoreAddress,
    flag,
    is_positional,
    parse_count,
    sentence_of,
    split_commas,
)


class _Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="wrap")
    @classmethod
    def _one_sentence_each(cls, values: Any, validate: Callable[[Any], Any], info: Any) -> Any:
        """Raises SettingsError: keys read as in Python, or as flags where the context names a verb."""
        try:
            return validate(values)
        except ValidationError as invalid:
            verb = (info.context or {}).get("verb")
            raise SettingsError("; ".join(sentence_of(cls, error, verb) for error in invalid.errors())) from None


class CacheSettings(_Settings):
    """text -> activation store: run a language model over text and keep what its hooks see."""

    model: str = "embedded"
    """language model: `embedded`, a directory, or a hub id"""
    revision: str | None = None
    """branch, tag or commit of a hub model"""
    text: str = "embedded"
    """`embedded`, a .txt/.jsonl/.parquet file or a folder of them, or a hub data set id"""
    split: str | None = None
    """split of the data set (default: `all` for embedded, `train` elsewhere)"""
    text_column: str | None = None
    """column that holds the text (default: `text`, or the only string column)"""
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
    """keep rows of special tokens (BOS and separators) as well; padding never has rows"""
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
    out: Path
    """the store's folder"""


class TrainSettings(_Settings):
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
    batch_size: Count = 1024
    """rows per step"""
    lr: Annotated[float, Field(gt=0)] | None = None
    """peak learning rate (default: .08 / sqrt(width of the rows) * sqrt(batch_size / 512), three fifths of it for adam)"""
    optimizer: Literal["row_rms", "adam"] = "row_rms"
    """row_rms: one mean square per latent, no momentum; adam: as the field does, and SAEs before this version"""
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
    matmul: Literal["float32", "bfloat16"] = "bfloat16"
    """precision of the encoder product that selects latents; the selected values are float32 either way"""
    log_every: Count = 50
    """steps between lines of the log, ARM-seedN.metrics.jsonl"""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 300.0
    """seconds between checkpoints, from which a killed run goes on"""
    arms_at_once: Count | None = None
    """arms of a seed that are in memory together (default: all; under torchrun as many as give every rank some)"""
    ranks_per_sae: Count = 1
    """under torchrun: processes that train one SAE together, each on its slice of every batch"""
    trackers: Annotated[tuple[Literal["wandb", "tensorboard"], ...], BeforeValidator(split_commas)] = ()
    """where else the lines of the log go: `wandb`, `tensorboard`, or both"""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`"""
    out: Path
    """folder for the run directories"""


class CompareSettings(_Settings):
    """run directories -> report.json, report.html: what the penalty changed, with intervals."""

    runs: Annotated[Path, Positional]
    """folder written by `sae-lm train`"""
    out: Path
    """folder for the report"""
    store: StoreAddress | None = None
    """activation store, if it was moved since training"""
    model: str | None = None
    """language model for the cross-entropy (default: the one the store was cached from; `none` to leave it out)"""
    baseline: str = "none"
    """arm the others are compared with"""
    tokens: Annotated[int, BeforeValidator(parse_count), Field(ge=2)] = 65_536
    """held-out rows for L0, FVU, dead latents; at most"""
    ce_contexts: Count = 256
    """held-out contexts for the cross-entropy; at most"""
    per_type: Count = 16
    """occurrences per token type in the concept data; at most"""
    min_types: Count = 50
    """positive token types a concept needs"""
    labels: Path | None = None
    """CSV file of further concepts: columns token (exact text) or string, label, and if wanted child"""
    contextual: bool = True
    """concepts of a token's place as well (inside brackets, first on its line, ...)"""
    prompts: bool = False
    """token concepts on prompts of BOS and one token each, which cover the vocabulary, instead of on the held-out text"""
    probe_gate: Share = 0.6
    """F1 on unseen token types a concept's probe needs"""
    split_gain: Share = 0.03
    """F1 a further latent must add to count as a split (tau of the sae-spelling rule)"""
    max_k: Count = 10
    """latents tried per concept"""
    equivalence: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """difference of a share (hole rate, fraction) below which an arm counts as equivalent to the baseline, if shown"""
    fvu_cost: Costs = (0.005,)
    """costs in FVU above the baseline's, comma separated, at which families of arms are compared; besides the greatest
    that both of two reach"""
    narrower: Path | None = None
    """folder of SAEs trained with the same settings but fewer latents: which of them became several here"""
    composition: bool = False
    """train a meta-SAE on every decoder, and on random directions, for the composition rate and its null; takes longer than
    all else together"""
    controls: bool = True
    """measure a perfect SAE and spoilt copies of the baseline too: which outcomes put them in order"""
    seed: int = 0
    """seed of everything drawn in the evaluation"""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`"""


class ShowSettings(_Settings):
    """one SAE -> an HTML page of the contexts that its latents fire on most."""

    sae: Annotated[str, Positional]
    """SAE directory, or a hub repository of one"""
    store: StoreAddress
    """activation store to search: a folder, or hf://datasets/OWNER/NAME[@REVISION]"""
    latents: Numbers | None = None
    """latents to show, comma separated (default: 20 spread over the alive ones)"""
    contexts: Count = 10
    """contexts per latent"""
    tokens: Count = 500_000
    """rows to search; at most, from the store's end"""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`"""
    out: Path
    """the HTML file"""


class ConvertSettings(_Settings):
    """an SAE of any known format -> a directory for SAELens, dictionary_learning or sparsify."""

    sae: Annotated[str, Positional]
    """SAE directory or file, or a hub repository of one: OWNER/NAME:FOLDER"""
    to: Literal["saelens", "dictionary_learning", "sparsify"]
    """whose format: `saelens`, `dictionary_learning`, `sparsify`"""
    format: str = "auto"
    """what it is now, where its files do not tell; as `sae_lm.load` takes it"""
    hook: str | None = None
    """which activation it is for, where its files do not tell: blocks.8.hook_out, or a layer's number"""
    k: Count | None = None
    """how many latents fire per token, where its files do not tell"""
    input_scale: Annotated[float, Field(gt=0)] | None = None
    """what activations are multiplied by before they are encoded, where its files do not tell"""
    out: Path
    """the directory to write; must not exist, or be empty"""


class CheckSettings(_Settings):
    """is an SAE loaded right? its fit to real activations, what its files claim, and the usual mistakes tried out."""

    sae: Annotated[str, Positional]
    """SAE: a directory or file of any known format, or a hub repository, OWNER/NAME:FOLDER"""
    model: str | None = None
    """language model (default: the SAE's own, or with --store none but `embedded`; `none` to leave it out)"""
    text: str | None = None
    """text to read: as for `cache` (default: embedded)"""
    store: StoreAddress | None = None
    """activation store to use in place of text"""
    hook: str | None = None
    """hook, where the SAE does not say it, or says it wrong"""
    format: str = "auto"
    """format of the SAE's files, where they do not tell"""
    k: Count | None = None
    """active latents, where the files do not say"""
    tokens: Count = 8_192
    """activations to measure"""
    context_size: Annotated[int, BeforeValidator(parse_count), Field(ge=2)] = 128
    """tokens per context"""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`"""


class VerifySettings(_Settings):
    """checksums of every file of a store or an SAE directory; exit 0 whole, 1 damaged."""

    path: Annotated[StoreAddress, Positional]
    """activation store or SAE directory"""
    repair: bool = False
    """cache the damaged shards of a store again, and only those"""
    model: str | None = None
    """for --repair: the language model, if the store was cached from a local folder"""
    text: str | None = None
    """for --repair: the text, if the store was cached from a local one"""
    device: str = "auto"
    """for --repair: `auto` (cuda if there is one), `cpu`, `cuda`"""


class EstimateSettings(CacheSettings):
    """what a cache would cost before it starts: rows, bytes, free space, time from a short trial."""

    trial: Annotated[float, Field(gt=0)] = 5.0
    """seconds of the trial"""
    out: Path = Path(".")
    """where the store would be: on which disk the free space counts"""


class InspectSettings(_Settings):
    """what a store or an SAE directory is and holds, with some rows decoded."""

    path: Annotated[str, Positional]
    """activation store (a folder, or hf://datasets/OWNER/NAME), or directory or file of an SAE of any known format"""
    rows: Annotated[int, BeforeValidator(parse_count), Field(ge=0)] = 5
    """rows to decode"""


class MergeSettings(_Settings):
    """stores of the same model, hooks and contexts -> one store."""

    stores: Annotated[tuple[StoreAddress, ...], BeforeValidator(split_commas), Positional]
    """stores to lay one after another"""
    out: Path
    """the merged store's folder"""


class PushSettings(_Settings):
    """store -> data set repository of the hub; what is there already is not sent again."""

    store: Annotated[Path, Positional]
    """activation store"""
    repo: Annotated[str, Positional]
    """OWNER/NAME of the data set repository; made if it is not there"""
    private: bool = True
    """make a new repository private"""
    revision: str | None = None
    """branch to push to (default: main)"""


class PullSettings(_Settings):
    """data set repository of the hub -> store on this disk, verified; goes on where it was interrupted."""

    address: Annotated[str, Positional]
    """OWNER/NAME or hf://datasets/OWNER/NAME, with @REVISION for another than the main branch"""
    hooks: Hooks | None = None
    """hooks to fetch, comma separated (default: all)"""
    out: Path
    """the store's folder"""


class DemoSettings(_Settings):
    """the whole pipeline on the embedded model and text; `demo toy`: worlds whose truth is known."""

    what: Annotated[Literal["pipeline", "toy"], Positional] = "pipeline"
    """`pipeline` or `toy`"""
    out: Path = Path("sae_lm_demo")
    """folder for the store, the runs and the report; what is there already is reused"""
    full: bool = False
    """toy: every arm, with curves over coefficients, instead of a short list; about ten minutes"""
    seeds: Annotated[int, BeforeValidator(parse_count), Field(ge=2)] = 6
    """toy: runs per arm"""


VERBS: dict[str, type[_Settings]] = {
    "demo": DemoSettings,
    "cache": CacheSettings,
    "train": TrainSettings,
    "compare": CompareSettings,
    "show": ShowSettings,
    "convert": ConvertSettings,
    "check": CheckSettings,
    "verify": VerifySettings,
    "inspect": InspectSettings,
    "estimate": EstimateSettings,
    "merge": MergeSettings,
    "push": PushSettings,
    "pull": PullSettings,
}


def make_settings(verb: str, values: Mapping[str, Any]) -> Any:
    """Validate values for a verb; every problem is named in one SettingsError, settings by their flags."""
    return VERBS[verb].model_validate(dict(values), context={"verb": verb})


def command_line(settings: BaseModel) -> str:
    """The ``sae-lm VERB ...`` command that makes these settings again: what differs from the defaults.

    A list's items are taken to hold no comma: on the command line none can.
    """
    verb = next(verb for verb, model in VERBS.items() if model is type(settings))
    flags: list[str] = []
    positional: list[str] = []
    for key, field in VERBS[verb].model_fields.items():
        value = getattr(settings, key)
        items = list(map(str, value)) if isinstance(value, tuple) else [str(value)]
        if value == field.default:
            continue
        if is_positional(field):
            positional += items
        elif isinstance(value, bool):
            flags.append(flag(key) if value else flag(f"no_{key}"))
        else:
            text = ",".join(items)
            flags += [f"{flag(key)}={text}"] if text.startswith("-") or "=" in text else [flag(key), text]
    if any(word.startswith("-") or "=" in word for word in positional):
        return shlex.join(["sae-lm", verb, *flags, "--", *positional])
    return shlex.join(["sae-lm", verb, *positional, *flags])
