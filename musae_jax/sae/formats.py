"""SAEs on disk, in the layout of SAELens 6, which most tools read; more files of ours that others ignore.

cfg.json                      architecture, d_in, d_sae, dtype, device, apply_b_dec_to_input, normalize_activations,
                              reshape_activations, metadata {…}; k if architecture is topk
sae_weights.safetensors       W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D], threshold [F] if jumprelu; b_gate, r_mag
                              and b_mag [F] for b_enc if gated
golden.safetensors            x [n, D] with its f [n, F] and x_hat [n, D], recomputed at load: the wrong rule, a
                              changed weight or a bias applied twice cannot go unseen
feature_maximum.safetensors   maximum [F], optional: each feature's largest activation, the unit of steering
feature_contrast.safetensors  contrast [F, D], optional: from ordinary music to that in which a feature is strongest

Read besides: SAELens of every version (`saelens.py`), sparsify (`sparsify.py`) and dictionary_learning
(`dictionary_learning.py`), from a folder or from the hub.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.files import read_json, write_json
from musae_jax.models.folder import HUB_ID
from musae_jax.sae import dictionary_learning, saelens, sparsify
from musae_jax.sae.folding import Params
from musae_jax.sae.golden import GOLDEN, check_golden, golden_triple
from musae_jax.sae.sae import SAE, SAEConfig
from musae_jax.sae.tensors import check_tensors, read_tensors, write_tensors

CONFIG, WEIGHTS = saelens.CONFIG, saelens.WEIGHTS
MAXIMUM, CONTRAST = "feature_maximum.safetensors", "feature_contrast.safetensors"


def save_sae(folder: str | Path, sae: SAE, golden: Any = None) -> None:
    """Writes an SAE so that `load_sae` and SAELens read it; each file is replaced atomically, cfg.json last.

    `golden` are activations [n, D] to check the SAE with from now on; without, some are made up from its weights.
    SAELens has no rule "groupmax": such a folder is read by `load_sae` alone.

    Raises:
      MusaeError: weights that are not finite or do not fit the config, or the disk refuses a file.
    """
    folder = Path(folder)
    config = sae.config
    params = {name: np.asarray(value, np.float32) for name, value in sae.params.items()}
    check_tensors(folder / WEIGHTS, config, params)
    record = {
        "architecture": config.architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        # Without a version SAELens takes the file for one of its flat configs and drops the metadata.
        "metadata": {**config.metadata, "sae_lens_version": saelens.LAYOUT},
    }
    if config.architecture in ("topk", "groupmax"):
        record["k"] = config.k
    elif config.k is not None:
        record["metadata"]["k"] = config.k
    if config.architecture == "topk":
        record["rescale_acts_by_decoder_norm"] = False
    write_tensors(folder / WEIGHTS, params)
    write_tensors(folder / GOLDEN, golden_triple(config, params, golden))
    for name, known, save in ((MAXIMUM, sae.maximum, save_maximum), (CONTRAST, sae.contrast, save_contrast)):
        if known is None:
            (folder / name).unlink(missing_ok=True)  # of another SAE that was here
        else:
            save(folder, known)
    write_json(folder / CONFIG, record)


def save_maximum(folder: str | Path, maximum: Any) -> None:
    """Writes each feature's largest activation [F] beside a saved SAE; `load_sae` reads it into `SAE.maximum`."""
    maximum = np.asarray(maximum, np.float32)
    features = read_json(Path(folder) / CONFIG)["d_sae"] if (Path(folder) / CONFIG).exists() else maximum.size
    if maximum.shape != (features,) or not np.isfinite(maximum).all() or (maximum < 0).any():
        raise MusaeError(
            f"the maxima for {folder} have shape {maximum.shape}, but {features} finite values >= 0 are needed, one a"
            " feature; compute the features' statistics again"
        )
    write_tensors(Path(folder) / MAXIMUM, {"maximum": maximum})


def save_contrast(folder: str | Path, contrast: Any) -> None:
    """Writes each feature's contrast [F, D] beside a saved SAE; `load_sae` reads it into `SAE.contrast`."""
    contrast = np.asarray(contrast, np.float32)
    record = read_json(Path(folder) / CONFIG) if (Path(folder) / CONFIG).exists() else {}
    shape = tuple(record.get(name, size) for name, size in zip(("d_sae", "d_in"), contrast.shape))
    if contrast.ndim != 2 or contrast.shape != shape or not np.isfinite(contrast).all():
        raise MusaeError(
            f"the contrasts for {folder} have shape {contrast.shape}, but finite values [features, width of the stream]"
            " are needed; run `musae features` again"
        )
    write_tensors(Path(folder) / CONTRAST, {"contrast": contrast})


def load_sae(source: str | Path, subfolder: str = "", revision: str | None = None) -> SAE:
    """Reads an SAE; fp32 whatever was stored, and checked against its golden triple where it has one.

    Args:
      source: a folder that `musae train`, SAELens, sparsify or dictionary_learning wrote, or a hub id "org/name".
      subfolder: where in it the SAE is; `revision` a branch, tag or commit of the hub.

    What is done around a rule (norms, scales, whitening) is folded into the weights, so that the params are those of
    `SAEConfig.architecture` and nothing else. `SAE.config.metadata` says where it came from, with hook_name as ours.

    Raises:
      MusaeError: a file is missing or damaged, an inference rule or a field is unknown, or the golden triple disagrees.
    """
    folder = Path(source).expanduser()
    if isinstance(source, str) and not folder.exists() and HUB_ID.fullmatch(source):
        from musae_jax.sae.hub import pull_sae  # which reads folders with the functions above

        folder = pull_sae(source, subfolder, revision)
    else:
        folder = folder / subfolder
    config, params = _read(folder)
    check_golden(folder, config, params)
    maximum = _beside(folder / MAXIMUM, "maximum", (config.d_sae,))
    contrast = _beside(folder / CONTRAST, "contrast", (config.d_sae, config.d_in))
    maximum = None if maximum is None else jnp.asarray(maximum)
    return SAE(config, {name: jnp.asarray(value) for name, value in params.items()}, maximum, contrast)


def _beside(path: Path, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """What is known of the features besides the weights, or None where the file is not there."""
    if not path.exists():
        return None
    found = read_tensors(path).get(name)
    if found is None or found.shape != shape:
        raise MusaeError(f"{path} does not hold `{name}` {list(shape)}; delete it and run it again")
    return found


def is_sae(folder: Path) -> bool:
    """Whether a folder holds the config of an SAE of any kind that `load_sae` reads."""
    return (folder / CONFIG).exists() or dictionary_learning.is_dictionary_learning(folder)


def _read(folder: Path) -> tuple[SAEConfig, Params]:
    if not is_sae(folder):
        raise MusaeError(
            f"{folder} holds no SAE (no {CONFIG}); give a folder that `musae train`, SAELens, sparsify or"
            " dictionary_learning wrote, or a hub id"
        )
    if not (folder / CONFIG).exists():
        return dictionary_learning.read_dictionary_learning(folder)
    if not (folder / WEIGHTS).exists() and (folder / sparsify.WEIGHTS).exists():
        return sparsify.read_sparsify(folder)
    return saelens.read_saelens(folder)
