"""Fields of SAELens' cfg.json that say how an SAE was trained and where, and are no part of what it computes.

Read from the sources of 2.1.3, 3.23.4, 4.4.5, 5.3.2 and 6.54.12. What is in none of these lists is refused.
"""

# Training checkpoints of version 6.
_TRAINING = """
    aux_loss_coefficient decoder_init_norm jumprelu_bandwidth jumprelu_init_threshold jumprelu_sparsity_loss_mode
    jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient l0_warm_up_steps l1_coefficient l1_warm_up_steps lp_norm
    matryoshka_widths pre_act_loss_coefficient target_l0 topk_threshold_lr use_matryoshka_aux_loss
    use_sparse_activations
"""
# The flat configs of versions 1 to 5.
_FLAT_TRAINING = """
    act_store_device adam_beta1 adam_beta2 autocast autocast_lm b_dec_init_method cached_activations_path
    checkpoint_path compile_llm compile_sae dataset_trust_remote_code dead_feature_threshold dead_feature_window
    decoder_heuristic_init decoder_orthogonal_init eval_batch_size_prompts eval_every_n_wandb_logs expansion_factor
    feature_sampling_window finetuning_method finetuning_tokens from_pretrained_path hook_eval hook_point_eval
    init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold l1_coefficient
    l1_warm_up_steps llm_compilation_mode log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb
    lp_norm lr lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps model_kwargs mse_loss_normalization
    n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles noise_scale normalize_sae_decoder resume run_name
    sae_compilation_mode scale_sparsity_penalty_by_decoder_norm seed store_batch_size_prompts streaming
    train_batch_size_tokens training_tokens use_cached_activations use_ghost_grads verbose wandb_entity wandb_id
    wandb_log_frequency wandb_project
"""
# What the paper's authors added to theirs.
_PAPER = """
    dead_feature_estimation_method duration feature_reinit_scale feature_sampling_method module_name resample_batches
    store_size tokens_per_buffer
"""
# The part of a flat config that version 6 keeps in its metadata.
_FLAT_METADATA = """
    context_size dataset_path hook_head_index hook_layer hook_name model_class_name model_from_pretrained_kwargs
    model_name neuronpedia_id prepend_bos sae_lens_training_version sae_lens_version seqpos_slice
"""

TRAINING = frozenset(_TRAINING.split())
FLAT_TRAINING = frozenset(_FLAT_TRAINING.split()) | frozenset(_PAPER.split())
FLAT_METADATA = frozenset(_FLAT_METADATA.split())
