import pytest

from musae_jax.sae.hooks import describe_hook, our_hook, with_our_hook


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hook_layers.5", "blocks.5.resid_post"),
        ("blocks.5.hook_resid_post", "blocks.5.resid_post"),
        ("blocks.5.resid_post", "blocks.5.resid_post"),
        ("decoder.model.decoder.layers.11", "blocks.11.resid_post"),
        ("transformer.h.0", "blocks.0.resid_post"),
        ("layers.3", "blocks.3.resid_post"),
        ("resid_post_layer_8", "blocks.8.resid_post"),
        ("layers.3.mlp", "layers.3.mlp"),
        ("blocks.5.hook_resid_pre", "blocks.5.hook_resid_pre"),
        ("text_encoder.encoder.layers.3", "text_encoder.encoder.layers.3"),
        ("", ""),
    ],
)
def test_names_of_a_blocks_output_become_ours_and_no_others(name, expected):
    assert our_hook(name) == expected


def test_the_name_found_is_kept():
    metadata = {"hook_name": "hook_layers.5", "a": 1}
    assert with_our_hook(metadata) == {
        "hook_name": "blocks.5.resid_post",
        "hook_name_in_file": "hook_layers.5",
        "a": 1,
    }
    for same in ({"hook_name": "blocks.5.resid_post"}, {"hook_name": None}, {}):
        assert with_our_hook(same) is same


def test_the_papers_layer_is_one_more():
    assert "layer 6 in the paper" in describe_hook("hook_layers.5")
    assert describe_hook("mlp") == "mlp" and describe_hook("") == "an unknown hook"
