"""Read the names of arms, as ``max_cos:0.25@margin=0.1``: a penalty, its coefficient and its options.

Every penalty takes ``rows [d_sae, d_in]`` (the decoder, or ``W_enc.T`` as the control; align takes both) of any norm,
depends on their directions (c2r on activations too), and holds no [d_sae, d_sae] matrix. Coefficients are in units where predicting the mean
activation costs 1, so they carry over between models.

    penalty[:coefficient][@option[=value]]...

    max_cos                      the default coefficient
    max_cos:0.1/0.25/1           a ladder: three arms. Every value may be one; several give every combination
    abs_cos:3@margin=0.1         cosines up to the margin cost nothing (abs_cos, max_cos)
    coactive:0.5@anchored        of two rows the one that fires more often stands still (max_cos, coactive, c2r)
    max_cos@chunk=8192           neighbours are searched inside random chunks, as OrtSAE and C2R published (max_cos, c2r)
    max_cos@exact@every=1        the whole gradient in float32 each time (sae_lm.penalties.term), and at every step
    max_cos@on=encoder           the control. Like every, start and warm_up, instead of what the run's settings say
    coactive@fvu=0.005           the coefficient is steered until it costs .005 FVU more than no penalty;
                                 or @coherence=0.2, until the mean cosine to the nearest row is .2
    none@k=16/32@arch=batchtopk  another SAE than the run's settings say: here the baseline at two L0
    none@arch=matryoshka@balance=0.25/1
                                 prefix l of n nested ones weighs .25^(n-1-l) in the loss, the whole dictionary 1;
                                 0 is batchtopk, 1 (the default) weighs all alike
    ...@widths=64+256+2048       its nested prefixes, ascending, the last d_sae; an arm's own of the run's --widths
    ...@prefixes=2               or so many drawn at every step, log-uniformly, besides the whole dictionary
    none@arch=matryoshka@fvu=0.005
                                 without a penalty the balance is steered, until it costs .005 FVU more than batchtopk
    none@decoder=frozen          a control: decoder rows stay at their random start, all else (b_dec too) is trained;
                                 or @decoder=0.8, where each row keeps at least this cosine with its start;
                                 or @encoder=frozen

A ladder is read as its arms; an arm's name has one value each, options in the order of `OPTIONS` and none at
its default, so that equal arms have equal names, in tables and (with ``_`` for ``:``) in folders.
"""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, NamedTuple, get_args

from torch import Tensor

from sae_lm.errors import SettingsError
from sae_lm.fields import Architecture, choice
from sae_lm.penalties.align import align
from sae_lm.penalties.c2r import c2r
from sae_lm.penalties.coactive import coactive
from sae_lm.penalties.max_cos import max_cos
from sae_lm.penalties.pairwise import abs_cos, freq_cos, sq_cos
from sae_lm.penalties.silent import silent


class Arm(NamedTuple):
    """One experimental condition: a penalty, its coefficient and options. None: as the run's settings say."""

    penalty: str
    coefficient: float
    margin: float = 0.0
    anchored: bool = False
    chunk: int | None = None
    exact: bool = False
    on: str | None = None
    every: int | None = None
    start: float | None = None
    warm_up: float | None = None
    fvu: float | None = None
    coherence: float | None = None
    arch: str | None = None
    k: int | None = None
    balance: float = 1.0
    """matryoshka: weight of a nested prefix in the loss, relative to the next wider one's"""
    widths: tuple[int, ...] | None = None
    """matryoshka: the nested prefixes, ascending, the last is d_sae"""
    prefixes: int | None = None
    """matryoshka: nested prefixes drawn at every step, besides the whole dictionary"""
    decoder: float | str | None = None
    """how its rows are held: `frozen`, or the least cosine with their random start"""
    encoder: str | None = None
    """`frozen`, or None"""
    label: str | None = None
    """of an SAE of another program, whose training is not known: what it is called, in place of all the above"""

    @property
    def name(self) -> str:
        """The arm as it is written: ``none``, ``abs_cos:1``, ``max_cos:0.25@margin=0.1``; or its label."""
        if self.label is not None:
            return self.label
        head = self.penalty if self.penalty == "none" else f"{self.penalty}:{_spell(self.coefficient)}"
        given = [option for option in OPTIONS if getattr(self, option) != self._field_defaults[option]]
        return head + "".join(f"@{o}" + ("" if o in FLAGS else f"={_spell(getattr(self, o))}") for o in given)

    @property
    def is_held(self) -> bool:
        """Whether it is a control that stays near its random start on purpose."""
        return self.decoder is not None or self.encoder is not None

    @property
    def baseline(self) -> "Arm":
        """The arm it is compared with: the same SAE without a penalty; of a steered balance, batchtopk of the same k;
        of a control, the same SAE held by nothing.

        A batchtopk SAE is what balance 0 comes to: beside it a balance costs what nesting costs, beside topk it
        would cost the architecture as well.
        """
        if self.label is not None:
            return self
        if self.steers_balance:
            return Arm("none", 0.0, arch="batchtopk", k=self.k, decoder=self.decoder, encoder=self.encoder)
        nested = {option: getattr(self, option) for option in NESTED}
        free = Arm("none", 0.0, arch=self.arch, k=self.k, **nested)
        return free if self.penalty == "none" else free._replace(decoder=self.decoder, encoder=self.encoder)

    @property
    def steers_balance(self) -> bool:
        """Whether ``fvu`` is the cost of the balance: there is no penalty whose coefficient it could steer."""
        return self.penalty == "none" and self.fvu is not None

    @property
    def family(self) -> "Arm":
        """The arm without its k: the rungs of a ladder over k are one family."""
        return self._replace(k=None)

    @property
    def variant(self) -> str:
        """The penalty with its options, without coefficient and k: ``max_cos@anchored``, and ``none`` as it is."""
        if self.label is not None:
            return self.label
        penalty, at, options = self.family.name.partition("@")
        return penalty.partition(":")[0] + at + options


def _spell(value: float | int | str | tuple[int, ...]) -> str:
    """The shortest text that reads back as the value."""
    if isinstance(value, tuple):
        return WIDTHS_JOINED_BY.join(map(str, value))
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


class Option(NamedTuple):
    """How one option of an arm is read."""

    read: Callable[[str], Any]
    """raises ValueError where the text is not what is expected"""
    expected: str
    penalties: frozenset[str]
    """penalties that have it"""


def _within(low: float | int, high: float | int, kind: Callable[[str], Any] = float, *, above: bool = False):
    """Read a number in [low, high), or with ``above`` in (low, high)."""

    def read(text: str) -> Any:
        value = kind(text)
        if not low <= value < high or (above and value == low):
            raise ValueError
        return value

    return read


def _widths(text: str) -> tuple[int, ...]:
    """Read ascending widths, from 1 on; that the last is d_sae is known to the run alone."""
    widths = tuple(map(int, text.split(WIDTHS_JOINED_BY)))
    if widths[0] < 1 or sorted(set(widths)) != list(widths):
        raise ValueError
    return widths


def _balance(text: str) -> float:
    if not 0 <= float(text) <= MOST_BALANCE:
        raise ValueError
    return float(text)


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return read


def _held(text: str) -> float | str:
    """Read how a decoder is held: a cosine in (0, 1); 1 is ``frozen``."""
    cosine = 1.0 if text == "frozen" else _within(0, INFINITY, above=True)(text)
    if cosine > 1:
        raise ValueError
    return "frozen" if cosine == 1 else cosine


Penalty = Callable[..., Tensor]
"""(rows [d_sae, d_in], generator, codes; options of its own) -> the penalty []."""
PENALTIES: dict[str, Penalty] = {
    "abs_cos": abs_cos,
    "sq_cos": sq_cos,
    "max_cos": max_cos,
    "coactive": coactive,
    "freq_cos": freq_cos,
    "c2r": c2r,
    "silent": silent,
    "align": align,
}
DEFAULT_COEFFICIENTS = {
    **{"abs_cos": 1.0, "sq_cos": 10.0, "max_cos": 0.25, "coactive": 0.2, "freq_cos": 0.5},
    **{"c2r": 5.0, "silent": 0.4, "align": 0.6},
}
"""max_cos: OrtSAE's published value, which cost .005 FVU on a residual stream (2048 latents, k 16, 1M rows). c2r: its
published value, which costs several times as much (tests/benchmarks/README.md); c2r:0.5@fvu=0.005 is steered to the
others' cost. The others: what cost about as much there, .004 to .008."""
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)
INFINITY = float("inf")
MOST_COEFFICIENT = 1e6
"""Below which a coefficient has to be: float32 holds it, and squares of gradients under it."""
MOST_BALANCE = 10.0
"""Largest balance that an arm may give; published ones go to 5 (2505.11756)."""
MOST_PREFIXES = 32
"""Drawn prefixes at most: each takes a copy of the batch."""
WIDTHS_JOINED_BY = "+"
NESTED = ("balance", "widths", "prefixes")
"""Options that matryoshka alone has."""
EVERY_PENALTY = frozenset(PENALTIES)
PAIRED = EVERY_PENALTY - {"align"}
"""Penalties on rows among themselves, be they the decoder's or the encoder's."""
FLAGS = ("anchored", "exact")
"""Options without a value."""
OPTIONS: dict[str, Option] = {
    "margin": Option(_within(0, 1), "a cosine from 0 to 1", frozenset({"abs_cos", "max_cos"})),
    "anchored": Option(_one_of(""), "no value: @anchored", frozenset({"max_cos", "coactive", "c2r"})),
    "chunk": Option(_within(2, INFINITY, int), "rows per random chunk, as 8192", frozenset({"max_cos", "c2r"})),
    "exact": Option(_one_of(""), "no value: @exact", PAIRED),
    "on": Option(_one_of("decoder", "encoder"), "decoder or encoder", PAIRED),
    "every": Option(_within(1, INFINITY, int), "steps, 1 or more", EVERY_PENALTY),
    "start": Option(_within(0, 1), "a share of the steps, from 0 to 1", EVERY_PENALTY),
    "warm_up": Option(_within(0, 1), "a share of the steps, from 0 to 1", EVERY_PENALTY),
    "fvu": Option(_within(0, 1, above=True), "a cost in FVU between 0 and 1, as 0.005", EVERY_PENALTY | {"none"}),
    "coherence": Option(_within(0, 1, above=True), "a cosine between 0 and 1, as 0.2", PAIRED),
    "arch": Option(_one_of(*ARCHITECTURES), "one of " + ", ".join(ARCHITECTURES), EVERY_PENALTY | {"none"}),
    "balance": Option(_balance, f"a weight from 0 to {MOST_BALANCE:g}", EVERY_PENALTY | {"none"}),
    "widths": Option(_widths, "ascending widths from 1 on, the last d_sae, as 64+256+2048", EVERY_PENALTY | {"none"}),
    "prefixes": Option(
        _within(1, MOST_PREFIXES + 1, int), f"prefixes per step, 1 to {MOST_PREFIXES}", EVERY_PENALTY | {"none"}
    ),
    "k": Option(_within(1, INFINITY, int), "active latents, 1 or more", EVERY_PENALTY | {"none"}),
    "decoder": Option(_held, "frozen or a cosine above 0 and up to 1, as 0.8", EVERY_PENALTY | {"none"}),
    "encoder": Option(_one_of("frozen"), "frozen", EVERY_PENALTY | {"none"}),
}
"""Options in the order of an arm's name."""


def parse_arm(text: str) -> Arm:
    """Read one arm. Raises SettingsError, for a ladder too."""
    arms = parse_arms([text])
    if len(arms) > 1:
        raise SettingsError(f"arms: {text!r} is {len(arms)} arms; name one of them, as {arms[0].name!r}")
    return arms[0]


def parse_arms(texts: Iterable[str]) -> list[Arm]:
    """Read arms and ladders of arms. Raises SettingsError for the first that is not understood or named twice."""
    arms: list[Arm] = []
    for text in texts:
        for arm in _read(text):
            if arm in arms:
                raise SettingsError(f"arms: {text!r} names {arm.name} a second time; name each arm once")
            arms.append(arm)
    return arms


def _read(text: str) -> list[Arm]:
    head, *options = text.strip().split("@")
    penalty, colon, coefficients = head.partition(":")
    if penalty != "none" and penalty not in PENALTIES:
        raise SettingsError(
            f"arms: unknown penalty {penalty!r} in {text!r}; expected penalty[:coefficient][@option=value] with "
            + choice(penalty, {"none": None, **PENALTIES})
        )
    if penalty == "none":
        if colon:
            raise SettingsError(f"arms: {text!r} gives none a coefficient; write none")
        ladder: list[Any] = [0.0]
    else:
        default = DEFAULT_COEFFICIENTS[penalty]
        expected = f"a number >= 0 and below {MOST_COEFFICIENT:g}, as {penalty}:{default:g}"
        read = _within(0, MOST_COEFFICIENT)
        ladder = _ladder(text, "coefficient", coefficients, read, expected) if colon else [default]
    given: dict[str, list[Any]] = {}
    for option in options:
        name, _, values = option.partition("=")
        known = [one for one in OPTIONS if penalty in OPTIONS[one].penalties]
        if name not in known:
            raise SettingsError(
                f"arms: {penalty} has no option {name!r} in {text!r}; expected {choice(name, dict.fromkeys(known))}"
            )
        if name in given:
            raise SettingsError(f"arms: {text!r} gives {name} twice; give it once, a ladder as {name}=1/2")
        given[name] = _ladder(text, name, values, OPTIONS[name].read, OPTIONS[name].expected)
    given |= {flag: [True] for flag in FLAGS if flag in given}
    if "fvu" in given and "coherence" in given:
        raise SettingsError(f"arms: {text!r} has two targets for one coefficient; give fvu or coherence")
    if "chunk" in given and "anchored" in given:
        raise SettingsError(f"arms: {text!r} is both as published (chunk) and not (anchored); give one of them")
    if ("fvu" in given or "coherence" in given) and penalty != "none" and 0 in ladder:
        raise SettingsError(f"arms: {text!r} begins at coefficient 0, which no factor moves; begin above 0")
    if "widths" in given and "prefixes" in given:
        raise SettingsError(
            f"arms: {text!r} has nested prefixes both fixed (widths) and drawn (prefixes); give one of them"
        )
    arms = [
        Arm(penalty, values[0], **dict(zip(given, values[1:], strict=True)))
        for values in product(ladder, *given.values())
    ]
    for arm in arms:
        if arm.steers_balance and arm.balance != 1:
            raise SettingsError(f"arms: {text!r} gives the balance that fvu steers; give one of them")
        if arm.arch is not None:
            check_nested(text, arm, arm.arch)
        check_held(arm, arm.on or "")  # whose rows another one looks at is the run's to say
    return arms


def check_nested(text: str, arm: Arm, arch: str) -> None:
    """Raises SettingsError where an arm of this architecture wants what only nested prefixes have, or gives prefixes that
    weigh nothing.

    text: what was asked for. arch: the arm's, or the run's where it names none.
    """
    given = [option for option in NESTED if getattr(arm, option) != arm._field_defaults[option]]
    if arch == "matryoshka":
        if arm.balance == 0 and (idle := [option for option in given if option != "balance"]):
            raise SettingsError(
                f"arms: {text!r} gives {idle[0]} at balance 0, where only the whole dictionary counts; leave {idle[0]} out, or "
                "give a balance above 0"
            )
        return
    if given:
        raise SettingsError(
            f"arms: {text!r} gives {given[0]} to {arch}, which has no nested prefixes; give @arch=matryoshka too"
        )
    if arm.steers_balance:
        raise SettingsError(
            f"arms: {text!r} has nothing that fvu could steer, no coefficient of a penalty and no balance of a "
            f"matryoshka; give a penalty or @arch=matryoshka"
        )


def check_held(arm: Arm, penalty_on: str) -> None:
    """Refuse an arm of which nothing is left to train, or whose penalty could move nothing. Raises SettingsError.

    penalty_on: whose rows its penalty looks at, ``decoder`` or ``encoder``; empty where that is not known yet.
    """
    frozen = [name for name in ("decoder", "encoder") if getattr(arm, name) == "frozen"]
    if len(frozen) == 2:
        raise SettingsError(f"arms: {arm.name!r} has no directions left to train; freeze the decoder or the encoder")
    looks_at = ("decoder", "encoder") if arm.penalty == "align" else (penalty_on,)
    if arm.penalty != "none" and (idle := [name for name in frozen if name in looks_at]):
        raise SettingsError(
            f"arms: {arm.name!r} has a penalty on a frozen {idle[0]}, which it cannot move; "
            f"write none@{idle[0]}=frozen for the control alone"
        )


def _ladder(text: str, name: str, values: str, read: Callable[[str], Any], expected: str) -> list[Any]:
    read_values = []
    for value in values.split("/"):
        try:
            read_values.append(read(value))
        except ValueError:
            raise SettingsError(f"arms: {name} {value!r} in {text!r}; expected {expected}") from None
    return read_values
