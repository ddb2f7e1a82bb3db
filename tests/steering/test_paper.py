import jax.numpy as jnp
import pytest

from musae_jax.files import write_json_lines
from musae_jax.sae.sae import SAE, SAEConfig
from musae_jax.steering.paper import paper_table, published_share
from musae_jax.steering.tables import paper_text


def sae(**changes):
    metadata = {"model_name": "facebook/musicgen-large", "hook_name": "blocks.35.resid_post"}
    metadata |= {"hook_name_in_file": "hook_layers.35", **changes}
    return SAE(SAEConfig(4, 128, "topk", 100, metadata=metadata), {"W_dec": jnp.zeros((128, 4))})


def test_only_the_paper_s_own_saes_stand_beside_its_figures():
    assert published_share(sae()) == pytest.approx(0.351, abs=5e-4)
    assert published_share(sae(hook_name="blocks.45.resid_post")) == pytest.approx(0.153, abs=1e-3)
    assert published_share(sae(hook_name="blocks.2.resid_post")) is None
    assert published_share(sae(hook_name_in_file="")) is None
    assert published_share(sae(model_name="facebook/musicgen-small")) is None


def test_shares_are_counted_over_features(tmp_path):
    values = {  # of two clips: unsteered, SAE, random
        1: ((0.1, 0.1), (0.3, 0.3), (0.0, 0.3)),
        2: ((0.1, 0.5), (0.2, 0.1), (0.2, 0.1)),
        3: ((0.4, 0.4), (0.1, 0.9), (0.4, 0.4)),
        4: ((0.4, 0.4), (0.1, 0.1), (0.1, 0.1)),
    }
    rows = [
        {"feature": feature, "arm": arm, "seed": seed, "measure": "exemplars", "value": value}
        for feature, arms in values.items()
        for arm, clips in zip(("unsteered", "sae", "random"), arms)
        for seed, value in enumerate(clips)
    ]
    write_json_lines(tmp_path / "effects.jsonl", [*rows, {**rows[0], "measure": "kl", "value": 9.0}])
    table = paper_table({"steered": 0.25}, tmp_path, sae())
    assert table["features"] == 4 and table["clips"] == 2
    assert table["sae"] == {"first_clip": 0.5, "mean_of_clips": 0.5}
    assert table["random"] == {"first_clip": 0.25, "mean_of_clips": 0.25}
    text = paper_text(table)
    assert "50 % by one clip" in text and "35 % (arXiv 2505.18186, Table 2)" in text
    assert "published" not in paper_text({**table, "published": None})
