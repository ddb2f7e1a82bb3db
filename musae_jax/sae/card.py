"""The model card of an SAE: what it was trained on, where it reads, how good it is, how to load it."""

import json
from typing import Any

from musae_jax.models.folder import HUB_ID
from musae_jax.sae.hooks import describe_hook
from musae_jax.sae.sae import SAE

CONTROL = "random-weights"  # ends the name of the SAE that was trained on the same architecture, untrained
_RULES = {
    "jumprelu": "f = p where p exceeds its threshold and 0, else 0",
    "topk": "f = relu(p) of the k largest p of each token, else 0",
    "standard": "f = relu(p)",
    "gated": "f = relu(q·exp(r_mag) + b_mag) where q + b_gate > 0, else 0",
    "groupmax": "f = relu(p) of the largest p of each of k equal groups, else 0",
}
_MEASURES = {
    "fvu": "fraction of variance unexplained (0 is perfect, 1 is the mean)",
    "fvu_within_positions": "the same about each position's own mean",
    "l0": "active features per token",
    "dead_share": "share of features that never fire",
    "l2_ratio": "norm of the reconstruction over that of the input",
    "ce_loss_score": "cross-entropy kept with the reconstruction in the model, of what zero there would cost",
    "kl_div_with_sae": "KL from the model's predictions to those with the reconstruction, nats a code",
}


def model_card(
    sae: SAE,
    repo_id: str,
    subfolder: str = "",
    license: str | None = None,
    metrics: dict[str, Any] | None = None,
    control: dict[str, Any] | None = None,
) -> str:
    """README.md for the hub, in Markdown with the hub's YAML head.

    `metrics` and `control` are what metrics.json holds for this SAE and for the one trained on the same model with
    random weights; what was not measured is said to be so.
    """
    m = sae.config.metadata
    return "\n\n".join(
        [
            _head(sae, license),
            f"# Sparse autoencoder of {m.get('model_name') or 'a music model'}, {sae.config.hook or 'hook unknown'}",
            _facts(sae),
            "## How good it is",
            _table(metrics, control),
            "## Recipe",
            _recipe(m),
            "## Loading it",
            _loading(sae, repo_id, subfolder),
        ]
    ) + "\n"  # fmt: skip


def _head(sae: SAE, license: str | None) -> str:
    model = str(sae.config.metadata.get("model_name") or "")
    license = license or ("cc-by-nc-4.0" if model.startswith("facebook/musicgen") else None)
    lines = ["---", "library_name: saelens", "tags:", "- sparse-autoencoder", "- musicgen", "- musae-jax"]
    lines += [f"license: {json.dumps(license)}"] if license else []
    lines += [f"base_model: {json.dumps(model)}"] if HUB_ID.fullmatch(model) else []
    return "\n".join([*lines, "---"])


def _facts(sae: SAE) -> str:
    c = sae.config
    m = c.metadata
    revision = f" at revision {m['model_revision']}" if m.get("model_revision") else ""
    positions = f", {m['context_size']} positions a clip" if m.get("context_size") else ""
    bias = "b_dec is subtracted from x before" if c.apply_b_dec_to_input else "b_dec is not subtracted from x before"
    rows = [
        f"Model: {m.get('model_name') or 'not recorded'}{revision}",
        f"Hook: {describe_hook(c.hook)}",
        f"Trained on: {m.get('dataset_path') or 'music of the run that made it'}{positions}",
        f"Size: {c.d_in} → {c.d_sae} features{f', about {c.k} active at a position' if c.k else ''}",
        f"Rule ({c.architecture}): {_RULES[c.architecture]}; {bias}",
    ]
    return "\n".join(f"- {row}" for row in rows)


def _table(metrics: dict[str, Any] | None, control: dict[str, Any] | None) -> str:
    if not metrics:
        return "Not measured."
    where = "clips that it was not trained on" if metrics.get("held_out") else "the clips that it was trained on"
    lines = [
        f"On {metrics.get('tokens', 'some')} tokens of {where}. The control is an SAE of the same recipe on the same"
        f" model with random weights{'' if control else '; it was not measured'}.",
        "",
        "| measure | this SAE | control |",
        "|---|---|---|",
    ]
    for name, meaning in _MEASURES.items():
        if metrics.get(name) is not None:
            beside = f"{control[name]:.4g}" if control and control.get(name) is not None else "–"
            lines.append(f"| {name}: {meaning} | {metrics[name]:.4g} | {beside} |")
    return "\n".join(lines)


def _recipe(metadata: dict[str, Any]) -> str:
    training = metadata.get("training")
    if not isinstance(training, dict) or not training:
        return f"Trained as {metadata['trained_as']}." if metadata.get("trained_as") else "Not recorded."
    head = f"Trained as {metadata['trained_as']}:\n\n" if metadata.get("trained_as") else ""
    return f"{head}```json\n{json.dumps(training, indent=1, sort_keys=True)}\n```"


def _loading(sae: SAE, repo_id: str, subfolder: str) -> str:
    where = f'"{repo_id}"' + (f', "{subfolder}"' if subfolder else "")
    ours = (
        "```python\nimport musae_jax as musae\n\n"
        f"sae = musae.load_sae({where})\n"
        "features = musae.sae_encode(sae.config, sae.params, residuals)  # [N, d_in] -> [N, d_sae]\n```"
    )
    if sae.config.architecture == "groupmax":
        return f"{ours}\n\nSAELens has no groupmax and does not load it."
    if subfolder:
        theirs = f'from sae_lens import SAE\n\nsae = SAE.from_pretrained("{repo_id}", "{subfolder}")'
    else:
        theirs = (
            "from huggingface_hub import snapshot_download\nfrom sae_lens import SAE\n\n"
            f'sae = SAE.load_from_disk(snapshot_download("{repo_id}"))'
        )
    return f"{ours}\n\nor with SAELens\n\n```python\n{theirs}\n```"
