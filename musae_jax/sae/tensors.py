"""An SAE's tensors on disk: safetensors read as float32, and the names and shapes that each rule needs."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path
from musae_jax.sae.sae import SAEConfig

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.int64,
    "I32": np.int32,
}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file as float32, half precision and bfloat16 too; a damaged file is refused."""
    try:
        entries = safetensors.deserialize(path.read_bytes())
        return {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"]).astype(np.float32)
            for name, entry in entries
        }
    except FileNotFoundError:
        raise MusaeError(f"{path} is missing; get the SAE's folder again") from None
    except KeyError as error:
        raise MusaeError(
            f"{path} holds a tensor of type {error}, known are {', '.join(_DTYPES)}; convert it to float32"
        ) from None
    except (safetensors.SafetensorError, ValueError, json.JSONDecodeError) as error:
        raise MusaeError(f"{path} is not a whole safetensors file ({error}); get it again") from None


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors as safetensors, atomically."""
    data = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def parameter_shapes(config: SAEConfig) -> dict[str, tuple[int, ...]]:
    """The tensors an SAE of this rule consists of."""
    biases = {"gated": ("b_gate", "r_mag", "b_mag"), "jumprelu": ("b_enc", "threshold")}
    return {
        "W_enc": (config.d_in, config.d_sae),
        "W_dec": (config.d_sae, config.d_in),
        "b_dec": (config.d_in,),
        **{name: (config.d_sae,) for name in biases.get(config.architecture, ("b_enc",))},
    }


def check_tensors(where: Any, config: SAEConfig, params: dict[str, np.ndarray]) -> None:
    """Raises one `MusaeError` that names every tensor that is missing, unknown, misshapen or not finite."""
    shapes = parameter_shapes(config)
    problems = [f"{name} is missing" for name in sorted(set(shapes) - set(params))]
    problems += [f"{name} is unknown" for name in sorted(set(params) - set(shapes))]
    for name in sorted(set(shapes) & set(params)):
        if params[name].shape != shapes[name]:
            problems.append(f"{name} is {list(params[name].shape)}, not {list(shapes[name])}")
        elif not np.isfinite(params[name]).all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        raise MusaeError(
            f"{where} does not fit a {config.architecture} SAE with d_in {config.d_in} and d_sae {config.d_sae}:"
            f" {'; '.join(problems)}; get it again, or mend the config beside it"
        )
