"""SAEs on the Hugging Face hub: pushed in one commit, pulled into the hub's own cache."""

import re
import tempfile
from pathlib import Path
from typing import Any

from musae_jax.errors import MusaeError
from musae_jax.models.folder import HUB_ID
from musae_jax.sae import dictionary_learning, saelens, sparsify
from musae_jax.sae.card import CONTROL, model_card
from musae_jax.sae.curves import PICTURE
from musae_jax.sae.formats import CONTRAST, MAXIMUM, load_sae, save_sae
from musae_jax.sae.golden import GOLDEN
from musae_jax.sae.sae import SAE
from musae_jax.sae.saebench import METRICS, SAEBENCH, SPLICE, read_measures, write_saebench

CARD = "README.md"
_PUSHED = (saelens.WEIGHTS, GOLDEN, MAXIMUM, CONTRAST, METRICS, SPLICE, SAEBENCH, "train.jsonl", PICTURE)
_PULLED = (
    *(saelens.CONFIG, saelens.WEIGHTS, saelens.SCALER, saelens.WHITENING, GOLDEN, MAXIMUM, CONTRAST, METRICS),
    *(sparsify.WEIGHTS, dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
)


def push_sae(
    sae: SAE | str | Path,
    repo_id: str,
    subfolder: str = "",
    revision: str | None = None,
    private: bool = False,
    license: str | None = None,
    message: str = "",
) -> str:
    """Puts an SAE and its card on the hub, in one commit, and returns its address.

    Args:
      sae: the SAE, or its folder: then its measures (and those of its control beside it) are in the card. A folder in
        another layout than SAELens' is converted. Loaded, and so checked, before anything is sent.
      repo_id: "org/name", created where it does not exist (`private` if you say so).
      subfolder: where in it, such as "blocks.5.resid_post/topk-2048-k32"; SAELens can load from subfolders only.
      license: of the SAE, in the card; without, MusicGen's own (cc-by-nc-4.0) if it was trained on one of Meta's.

    Raises:
      MusaeError: the SAE cannot be loaded, or the hub refuses; nothing is committed then.
    """
    import huggingface_hub  # slow to import, needed only here

    _check(repo_id, subfolder)
    loaded = sae if isinstance(sae, SAE) else load_sae(sae)
    folder = None if isinstance(sae, SAE) else Path(sae)
    measures = _measures(folder) if folder else {}
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None or not (folder / GOLDEN).exists():
            save_sae(temporary, loaded)
            files = {path.name: path for path in Path(temporary).iterdir()}
        else:
            files = {saelens.CONFIG: folder / saelens.CONFIG}
        if folder is not None:
            files = {**{name: folder / name for name in _PUSHED if (folder / name).exists()}, **files}
            if core := write_saebench(folder, loaded, Path(temporary) / SAEBENCH):
                files[SAEBENCH] = core
        card = model_card(loaded, repo_id, subfolder, license, **measures).encode()

        def send() -> Any:
            api = huggingface_hub.HfApi()
            api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: as the organisation has it
            there = set(api.list_repo_files(repo_id, revision=revision))
            placed: dict[str, Any] = {_join(subfolder, name): path for name, path in sorted(files.items())}
            placed[_join(subfolder, CARD)] = card
            if CARD not in there:
                placed[CARD] = card
            # What an SAE pushed there before has more than this one would be taken for a part of this one.
            stale = {_join(subfolder, name) for name in _PUSHED} & there - set(placed)
            operations: list[Any] = [huggingface_hub.CommitOperationDelete(name) for name in sorted(stale)]
            operations += [
                huggingface_hub.CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
                for name, content in placed.items()
            ]
            summary = message or f"SAE {subfolder or loaded.config.hook}".strip()
            return api.create_commit(repo_id, operations, commit_message=summary, revision=revision)

        commit = _ask(f"{repo_id} could not be pushed to", "log in with `hf auth login` and check the name", send)
    return str(commit.commit_url)


def pull_sae(repo_id: str, subfolder: str = "", revision: str | None = None) -> Path:
    """The local folder of an SAE on the hub, downloaded once: only the files `load_sae` reads, in any of its layouts.

    Raises:
      MusaeError: there is no such repository or no SAE in that subfolder (then those that have one are named), or the
        hub cannot be reached and the cache does not hold it.
    """
    import huggingface_hub  # slow to import, needed only here

    _check(repo_id, subfolder)
    patterns = [_join(subfolder, name) for name in _PULLED]
    advice = "check the name and the network, or give a folder that exists"
    snapshot = _ask(
        f"{repo_id} could not be fetched from the hub",
        advice,
        lambda: huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=patterns),
    )
    folder = Path(snapshot) / subfolder
    if (folder / saelens.CONFIG).exists() or dictionary_learning.is_dictionary_learning(folder):
        return folder
    names = _ask(
        f"{repo_id} could not be listed on the hub",
        advice,
        lambda: huggingface_hub.HfApi().list_repo_files(repo_id, revision=revision),
    )
    marks = (saelens.CONFIG, dictionary_learning.WEIGHTS)
    found = sorted({name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in marks})
    where = f"{repo_id}/{subfolder}".rstrip("/")
    have = f"; the subfolders that do are {', '.join(map(repr, found))}" if found else ""
    raise MusaeError(f"{where} holds no SAE{have}; name a subfolder that holds one")


def run_saes(run: str | Path) -> list[Path]:
    """The folders of a run's SAEs, without the controls."""
    found = sorted(path.parent for path in Path(run).glob(f"sae/*/*/{saelens.CONFIG}"))
    found = [folder for folder in found if not folder.name.endswith(CONTROL)]
    if not found:
        raise MusaeError(
            f"{run} holds no trained SAE (sae/HOOK/NAME/{saelens.CONFIG}); give a run that has been trained"
        )
    return found


def usual_subfolder(folder: str | Path) -> str:
    """Where an SAE's folder goes by default: HOOK/NAME."""
    folder = Path(folder)
    hook = load_sae(folder).config.hook
    return "/".join(part for part in (hook, folder.resolve().name) if part)


def _check(repo_id: str, subfolder: str) -> None:
    if not HUB_ID.fullmatch(repo_id):
        raise MusaeError(f"{repo_id!r} is not a hub id; it must look like org/name")
    if subfolder and not re.fullmatch(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*", subfolder):
        raise MusaeError(f"the subfolder {subfolder!r} is not a plain path; use letters, digits, dots, - and _")


def _join(subfolder: str, name: str) -> str:
    return f"{subfolder}/{name}" if subfolder else name


def _measures(folder: Path) -> dict[str, Any]:
    """What was measured of the SAE, and of its control in the folder beside it, where there are such."""
    found = {"metrics": folder, "control": folder.with_name(f"{folder.name}-{CONTROL}")}
    return {name: read_measures(where) for name, where in found.items() if (where / METRICS).exists()}


def _ask(what: str, advice: str, call: Any) -> Any:
    try:
        return call()
    except Exception as error:  # no network, no such repository, no permission: many types, one meaning
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MusaeError(f"{what} ({reason}); {advice}") from error
