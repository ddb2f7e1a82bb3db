"""Steering as it is asked for on the command line: `--steer FEATURE=STRENGTH …`, how, when, and where the SAE is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.files import read_json
from musae_jax.models.decoder import DecoderConfig
from musae_jax.models.edits import Edits
from musae_jax.models.folder import HUB_ID
from musae_jax.sae.formats import load_sae
from musae_jax.sae.hub import run_saes
from musae_jax.sae.sae import SAE
from musae_jax.steering.combining import Branches, combine, during, on_branches
from musae_jax.steering.directions import layer_of, steer, steer_contrast
from musae_jax.steering.operations import ablate, clamp, hold, scale

OPERATIONS = {"contrast": steer_contrast, "add": steer, "clamp": clamp, "scale": scale, "ablate": ablate, "hold": hold}


def read_strengths(requests: Iterable[str], how: str | None = None) -> dict[int, float]:
    """{feature: strength} from texts such as "23=1" and "192=-0.5", or both in one with a comma; to "ablate", from
    features alone, {feature: 0}.

    Raises:
      MusaeError: a text of another form, or a feature that is named twice.
    """
    strengths: dict[int, float] = {}
    for request in (part for text in requests for part in text.split(",")):
        feature, _, strength = request.partition("=") if how != "ablate" else (request, "", "0")
        try:
            number, value = int(feature), float(strength)
        except ValueError:
            form = "FEATURE alone to ablate it" if how == "ablate" else "FEATURE=STRENGTH, such as 23=1 or 192=-0.5"
            raise MusaeError(f"--steer was given {request!r}; write {form}, and prompts before it") from None
        if number in strengths:
            raise MusaeError(f"--steer names feature {number} more than once; give it one strength")
        strengths[number] = value
    return strengths


def read_schedules(requests: Sequence[str], features: Iterable[int]) -> dict[int, str]:
    """{feature: its schedule's text} from texts such as "ramp:0-4", for all, and "17:beats:120", for one feature.

    Raises:
      MusaeError: a feature that is not steered, or two schedules for the same.
    """
    everywhere, own = [], {}
    for request in requests:
        feature, _, rest = request.partition(":")
        if not feature.strip().isdecimal():
            everywhere.append(request)
        elif int(feature) in own:
            raise MusaeError(f"--schedule names feature {int(feature)} more than once; give it one schedule")
        else:
            own[int(feature)] = rest
    if len(everywhere) > 1:
        raise MusaeError(
            f"--schedule was given {' and '.join(everywhere)} for all features; give one, or FEATURE:SCHEDULE for each"
        )
    if unknown := sorted(set(own) - set(features)):
        raise MusaeError(f"--schedule names feature {unknown[0]}, which --steer does not; name it there too")
    return {feature: own.get(feature, *everywhere, *([] if everywhere else ["constant"])) for feature in features}


def requested_edits(
    sae: SAE,
    strengths: Mapping[int, float],
    how: str,
    schedules: Mapping[int, str],
    branches: Branches,
    model: DecoderConfig,
    factors: Callable[[str], np.ndarray],
) -> Edits:
    """The edits of a request. `factors` gives those of a schedule's text; features with the same one go together.

    Raises:
      MusaeError: the SAE is of another model, or cannot do it.
    """
    layer, layers = layer_of(sae), model.num_hidden_layers
    if layer >= layers:
        raise MusaeError(
            f"the SAE is for layer {layer}, but this model has layers 0 to {layers - 1}; take an SAE of this model"
        )
    if sae.config.d_in != model.hidden_size:
        raise MusaeError(
            f"the SAE reads a stream {sae.config.d_in} wide, but this model's residual stream is {model.hidden_size} "
            "wide; take an SAE of this model"
        )
    parts = []
    for schedule in sorted(set(schedules.values())):
        part = OPERATIONS[how](sae, {f: a for f, a in strengths.items() if schedules[f] == schedule})
        parts.append(part if schedule == "constant" else during(part, factors(schedule)))
    return on_branches(combine(*parts), branches)


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
