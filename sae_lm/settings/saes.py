"""Settings of what is done with a trained SAE: show, convert, check."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from sae_lm.fields import Count, DeviceMap, Numbers, Positional, StoreAddress, parse_count
from sae_lm.settings.base import Settings


class ShowSettings(Settings):
    """one SAE, or two side by side -> an HTML page of what their latents fire on."""

    sae: Annotated[str, Positional]
    """SAE directory, or a hub repository of one"""
    beside: Annotated[str | None, Positional] = None
    """a second SAE of the same hook, shown beside the first on the same rows"""
    store: StoreAddress
    """activation store to search: a folder, or hf://datasets/OWNER/NAME[@REVISION]"""
    latents: Numbers | None = None
    """latents to show, comma separated (default: all that fire)"""
    contexts: Count = 10
    """best contexts per latent"""
    tokens: Count = 250_000
    """rows to search; at most, from the store's end"""
    model: str | None = None
    """language model, for the tokens that a latent promotes (default: that of the store, if it is the embedded one; `none`)"""
    labels: Path | None = None
    """CSV file of further concepts: columns token (exact text) or string, label, and if wanted child"""
    codes: Path | None = None
    """folder for the SAEs' codes, which a second call reads (default: latent_codes beside the page)"""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`"""
    out: Path
    """the HTML file; one of more than 5 MB gets a folder of data beside it"""


class ConvertSettings(Settings):
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


class ExportSettings(Settings):
    """an SAE's latents -> files for Neuronpedia, SAEDashboard, delphi, llama.cpp or lm-evaluation-harness."""

    sae: Annotated[str, Positional]
    """SAE: a directory or file of any known format, or a hub repository, OWNER/NAME:FOLDER"""
    to: Literal["neuronpedia", "saedashboard", "delphi", "gguf", "lm-eval"]
    """for what: `neuronpedia`, `saedashboard`, `delphi`, `gguf` (llama.cpp's control vector), `lm-eval`"""
    store: StoreAddress | None = None
    """activation store whose rows are shown: a folder, or hf://datasets/OWNER/NAME[@REVISION]"""
    latents: Numbers | None = None
    """latents to write, comma separated (default: all that fire); gguf, lm-eval: one"""
    tokens: Count = 250_000
    """rows to search; at most, from the store's end"""
    model: str | None = None
    """neuronpedia, saedashboard: language model, for the tokens that a latent promotes (default, and `none`: without them)"""
    name: str | None = None
    """name of the set of SAEs (default: sae-lm); gguf: llama.cpp's name of the model's architecture, as llama"""
    strength: float | None = None
    """lm-eval: what the decoder row is multiplied by (default: the latent's largest activation)"""
    module: str | None = None
    """lm-eval: the block's module below the model's base (default: layers.N; GPT-2: h.N)"""
    codes: Path | None = None
    """folder for the SAE's codes, which a second call reads (default: latent_codes beside --out)"""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`"""
    out: Path
    """folder to write; must not exist, or be empty"""


class CheckSettings(Settings):
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
    input_scale: Annotated[float, Field(gt=0)] | None = None
    """what activations are multiplied by before they are encoded, where the files do not say"""
    tokens: Count = 8_192
    """activations to measure"""
    context_size: Annotated[int, BeforeValidator(parse_count), Field(ge=2)] | None = None
    """tokens per context of a text (default: as the SAE was trained, else 128; at most what the model takes)"""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`"""
    device_map: DeviceMap | None = None
    """lay the language model over all cards, as in `cache`; the SAE stays on `device`"""
