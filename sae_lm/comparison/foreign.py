"""Read a folder of SAEs of any programs, so that they can be measured side by side: without arms, without seeds.

Each SAE is an arm of its own, named as in the folder, with one seed. No test over seeds can be made of them, so that
the report describes these SAEs and claims nothing of how they were trained.
"""

from pathlib import Path

from sae_lm.comparison.runs import Run, Runs
from sae_lm.data.store import Store, open_store
from sae_lm.errors import SaeError, SaeLmError
from sae_lm.fields import choice
from sae_lm.lm.hooks import canonical_hook
from sae_lm.penalties.arms import Arm
from sae_lm.sae.load import load
from sae_lm.sae.locations import find_saes, local_files
from sae_lm.sae.model import SAE
from sae_lm.settings import CompareSettings
from sae_lm.training.run_folder import RUN

MEASURED = 0.9
"""Share of the store that is measured, at its end, or less: what an SAE is known to be trained on is not measured. The
rest gives the mean row."""
MOST_NAMED = 6


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds SAEs and was not written by ``sae-lm train``."""
    return folder.is_dir() and not (folder / RUN).exists() and bool(_names(folder))


def read_foreign(settings: CompareSettings) -> Runs:
    """Every SAE below a folder, at all depths, that is of the hook.

    SAEs that cannot be loaded, or are of another hook or width than the store's, are left out, and ``partial`` says
    why. Raises SaeError where none is left, where they are of several hooks, and for a wrong baseline.
    """
    folder = settings.runs
    if settings.store is None:
        raise SaeError(f"{folder} holds SAEs of other programs, which name no store; give one with --store")
    store = open_store(settings.store)
    saes, partial = _load_all(settings)
    hook = _common_hook(folder, saes, store)
    width = store.hooks[hook]
    partial += [
        f"{name} is left out: its d_in is {sae.config.d_in}, the store's {hook} has width {width}."
        for name, sae in saes.items()
        if sae.config.d_in != width
    ]
    fitting = {name: sae for name, sae in saes.items() if sae.config.d_in == width}
    if not fitting:
        raise SaeError(f"{folder} holds no SAE of width {width}, as the store's {hook} has: {' '.join(partial)}")
    return _as_runs(settings, store, hook, fitting, partial)


def _as_runs(settings: CompareSettings, store: Store, hook: str, saes: dict[str, SAE], partial: list[str]) -> Runs:
    baseline = _baseline(settings, list(saes))
    recorded = {name: start for name, sae in saes.items() if (start := _trained_until(sae, store))}
    context, row = first_measured(store, [*recorded.values()])
    unknown = ", ".join(name for name in saes if name not in recorded)
    arms = {name: Arm("none", 0.0, label=name) for name in sorted(saes, key=lambda name: name != baseline)}
    runs = {}
    for name, arm in arms.items():
        config = saes[name].config
        training = {
            "store_id": store.manifest.id,
            "hook": hook,
            "held_out_from_row": row,
            "held_out_from_context": context,
            "d_sae": config.d_sae,
            "k": config.k,
        }
        runs[arm, 0] = Run(arm, 0, settings.runs / name, training, config.architecture, settings.hook)
    widths = {sae.config.d_sae for sae in saes.values()}
    training = dict(runs[arms[baseline], 0].training) | ({"d_sae": None} if len(widths) > 1 else {})
    told = [
        "These SAEs are of other programs or runs: how they were trained is not known, there is one of each, and nothing "
        "can be claimed of what made them differ.",
        *(
            [
                f"Whether {unknown if recorded else 'they'} were trained on this text is not known either; if so, all "
                "figures are better than on new text."
            ]
            if unknown
            else []
        ),
        *(["They are of several widths: more latents alone split and absorb more."] if len(widths) > 1 else []),
    ]
    return Runs(arms[baseline], list(arms.values()), [0], runs, [*told, *partial], training)


def first_measured(store: Store, recorded: list[tuple[int, int]]) -> tuple[int, int]:
    """(context, row) where what is measured begins.

    recorded: where the rows end that SAEs were trained on, as far as it is known.
    """
    share = min(MEASURED, 1 - 1.5 / max(2, store.manifest.contexts))  # at least one context gives the mean row
    return max([store.held_out_from(share), *recorded])


def _trained_until(sae: SAE, store: Store) -> tuple[int, int] | None:
    """(context, row) where the rows end that an SAE of ``sae-lm train`` saw; None of another program or store."""
    training = sae.config.metadata.get("training")
    if not isinstance(training, dict) or training.get("store_id") != store.manifest.id:
        return None
    context, row = (training.get(key) for key in ("held_out_from_context", "held_out_from_row"))
    return (context, row) if isinstance(context, int) and isinstance(row, int) and row < len(store) else None


def _names(folder: Path) -> list[str]:
    return [name for name in find_saes(local_files(folder)) if name]


def _load_all(settings: CompareSettings) -> tuple[dict[str, SAE], list[str]]:
    """Name -> SAE, and sentences on those that are left out. Raises SaeError where none can be loaded."""
    saes: dict[str, SAE] = {}
    partial = []
    for name in _names(settings.runs):
        try:
            sae = _load(settings, name)
        except SaeLmError as problem:
            partial.append(f"{name} is left out: {problem}.")
            continue
        own = sae.config.metadata.get("hook_name")
        if not own:
            partial.append(f"{name} is left out: it does not say which hook it is for; give --hook.")
            continue
        if settings.hook is not None and canonical_hook(str(own)) != canonical_hook(settings.hook):
            partial.append(f"{name} is left out: it is for {own}.")
            continue
        saes[name] = sae
    if not saes:
        raise SaeError(f"{settings.runs} holds no SAE that can be measured: {' '.join(partial[:MOST_NAMED])}")
    return saes, partial


def _load(settings: CompareSettings, name: str) -> SAE:
    """With the hook that is given, where its files say none."""
    path = settings.runs / name
    try:
        sae = load(path, "cpu")
    except SaeLmError:
        if settings.hook is None:
            raise
        return load(path, "cpu", hook=settings.hook)
    if settings.hook is not None and not sae.config.metadata.get("hook_name"):
        return load(path, "cpu", hook=settings.hook)
    return sae


def _common_hook(folder: Path, saes: dict[str, SAE], store: Store) -> str:
    hooks: dict[str, list[str]] = {}
    for name, sae in saes.items():
        hooks.setdefault(canonical_hook(str(sae.config.metadata.get("hook_name"))), []).append(name)
    if len(hooks) > 1:
        told = "; ".join(f"{hook}: {', '.join(names[:3])}" for hook, names in hooks.items())
        raise SaeError(f"{folder} holds SAEs of several hooks ({told}); name one with --hook")
    return store.hook(next(iter(hooks)))


def _baseline(settings: CompareSettings, names: list[str]) -> str:
    if settings.baseline in names:
        return settings.baseline
    if settings.differs("baseline"):
        known = dict.fromkeys(names)
        raise SaeError(
            f"{settings.runs} holds no SAE {settings.baseline!r}; expected {choice(settings.baseline, known)}"
        )
    return names[0]
