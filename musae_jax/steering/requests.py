"""Steering as it is asked for on the command line: `--steer FEATURE=STRENGTH …` and where the SAE is."""

from collections.abc import Iterable
from pathlib import Path

from musae_jax.errors import MusaeError
from musae_jax.files import read_json
from musae_jax.models.folder import HUB_ID
from musae_jax.sae.formats import load_sae
from musae_jax.sae.hub import run_saes
from musae_jax.sae.sae import SAE


def read_strengths(requests: Iterable[str]) -> dict[int, float]:
    """{feature: strength} from texts such as "740=1" and "367=-0.5".

    Raises:
      MusaeError: a text of another form, or a feature that is named twice.
    """
    strengths: dict[int, float] = {}
    for request in requests:
        feature, _, strength = request.partition("=")
        try:
            number, value = int(feature), float(strength)
        except ValueError:
            raise MusaeError(
                f"--steer was given {request!r}; write FEATURE=STRENGTH, such as 740=1 or 367=-0.5, and prompts before"
                " it"
            ) from None
        if number in strengths:
            raise MusaeError(f"--steer names feature {number} more than once; give it one strength")
        strengths[number] = value
    return strengths


def find_sae(source: str) -> SAE:
    """The SAE of a run folder, of a folder in any layout that `load_sae` reads, or on the hub: "org/name" or
    "org/name/subfolder".

    Raises:
      MusaeError: there is none, or the run has several (then they are named).
    """
    folder = Path(source).expanduser()
    if not folder.exists() and HUB_ID.fullmatch("/".join(source.split("/")[:2])):
        organisation, name, *subfolder = source.split("/")
        return load_sae(f"{organisation}/{name}", "/".join(subfolder))
    if run_model(source) is None:
        return load_sae(folder)
    found = run_saes(folder)
    if len(found) > 1:
        raise MusaeError(f"{source} has {len(found)} SAEs; give --sae one of {', '.join(map(str, found))}")
    return load_sae(found[0])


def run_model(source: str) -> str | None:
    """The model of a run folder; None for an SAE of its own."""
    record = Path(source).expanduser() / "run.json"
    return read_json(record)["config"]["model"] if record.is_file() else None
