"""The vocabulary of kohya's sdxl_train.py and sdxl_train_network.py, and of the launchers before them.

Owns which flags exist, how many values each takes, and why some have no counterpart here. Refuses to map any:
`rules` do.
"""

from __future__ import annotations

from difflib import get_close_matches

from clusterft_trainer.migrate.found import LAUNCH, Why

SWITCHES = frozenset(
    """
    alpha_mask async_upload bucket_no_upscale cache_info cache_latents cache_latents_to_disk
    cache_text_encoder_outputs cache_text_encoder_outputs_to_disk color_aug console_log_simple
    cpu_offload_checkpointing ddp_gradient_as_bucket_view ddp_static_graph debiased_estimation_loss debug_dataset
    deepspeed diffusers_xformers dim_from_weights disable_mmap_load_safetensors enable_bucket enable_wildcard
    flip_aug fp16_master_weights_and_gradients fp8_base fp8_base_unet full_bf16 full_fp16 fused_backward_pass
    gradient_checkpointing highvram ip_noise_gamma_random_strength log_config lowram masked_loss mem_eff_attn
    network_train_text_encoder_only network_train_unet_only no_half_vae no_metadata no_token_padding
    noise_offset_random_strength output_config persistent_data_loader_workers random_crop
    resume_from_huggingface sample_at_first save_state save_state_on_train_end save_state_to_huggingface
    scale_v_pred_loss_like_noise_pred sdpa shuffle_caption skip_cache_check skip_until_initial_step torch_compile
    train_text_encoder use_8bit_adam use_lion_optimizer use_safetensors v2 v_parameterization weighted_captions
    xformers zero3_init_flag zero3_save_16bit_model zero_terminal_snr is_reg split_attn apply_t5_attn_mask
    """.split()
)
MANY = frozenset(
    "optimizer_args lr_scheduler_args network_args base_weights base_weights_multiplier text_encoder_lr".split()
)
SINGLE = frozenset(
    """
    adaptive_noise_scale block_lr bucket_reso_steps caption_dropout_every_n_epochs caption_dropout_rate
    caption_extension caption_extention caption_prefix caption_separator caption_suffix caption_tag_dropout_rate
    clip_skip conditioning_data_dir config_file console_log_file console_log_level dataset_class dataset_config
    dataset_repeats ddp_timeout dynamo_backend face_crop_aug_range fused_optimizer_groups
    gradient_accumulation_steps huber_c huber_scale huber_schedule huggingface_path_in_repo huggingface_repo_id
    huggingface_repo_type huggingface_repo_visibility huggingface_token in_json initial_epoch initial_step
    ip_noise_gamma keep_tokens keep_tokens_separator learning_rate learning_rate_te learning_rate_te1
    learning_rate_te2 log_prefix log_tracker_config log_tracker_name log_with logging_dir loss_type
    lr_decay_steps lr_scheduler lr_scheduler_min_lr_ratio lr_scheduler_num_cycles lr_scheduler_power
    lr_scheduler_timescale lr_scheduler_type lr_warmup_steps max_bucket_reso max_data_loader_n_workers
    max_grad_norm max_timestep max_token_length max_train_epochs max_train_steps max_validation_steps
    metadata_author metadata_description metadata_is_negative_embedding metadata_license metadata_merged_from
    metadata_preprocessor metadata_tags metadata_thumbnail metadata_title metadata_trigger_phrase
    metadata_usage_hint min_bucket_reso min_snr_gamma min_timestep mixed_precision multires_noise_discount
    multires_noise_iterations network_alpha network_dim network_dropout network_module network_weights
    noise_offset offload_optimizer_device offload_optimizer_nvme_path offload_param_device
    offload_param_nvme_path optimizer_type output_dir output_name pretrained_model_name_or_path
    prior_loss_weight reg_data_dir resize_interpolation resolution resume sample_every_n_epochs
    sample_every_n_steps sample_prompts sample_sampler save_every_n_epochs save_every_n_steps save_last_n_epochs
    save_last_n_epochs_state save_last_n_steps save_last_n_steps_state save_model_as save_n_epoch_ratio
    save_precision scale_weight_norms secondary_separator seed stop_text_encoder_training token_warmup_min
    token_warmup_step tokenizer_cache_dir train_batch_size train_data_dir training_comment unet_lr
    v_pred_like_loss vae vae_batch_size validate_every_n_epochs validate_every_n_steps validation_seed
    validation_split wandb_api_key wandb_run_name zero_stage
    image_dir metadata_file class_tokens custom_attributes network_multiplier
    ae attn_mode blocks_to_swap clip_g clip_l discrete_flow_shift gemma2 guidance_scale logit_mean logit_std
    mode_scale model_prediction_type model_type qwen3 sigmoid_scale t5xxl t5xxl_max_token_length
    text_encoder_batch_size timestep_sampling training_shift weighting_scheme
    """.split()
)
KOHYA = SWITCHES | MANY | SINGLE

# In a dataset file some settings of the command line have other names.
DATASET_NAMES = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}

LAUNCH_SWITCHES = frozenset(
    """
    quiet cpu multi_gpu tpu enable_cpu_affinity dynamo_use_fullgraph dynamo_use_dynamic
    dynamo_use_regional_compilation use_deepspeed use_fsdp use_parallelism_config use_megatron_lm same_network
    module no_python debug standalone force_multi no_ssh downcast_bf16
    """.split()
)
LAUNCH_SINGLE = frozenset(
    """
    config_file compute_environment distributed_type num_machines num_processes machine_rank main_process_ip
    main_process_port main_training_function mixed_precision gpu_ids num_cpu_threads_per_process rdzv_backend
    rdzv_conf rdzv_endpoint rdzv_id max_restarts monitor_interval role log_dir tee dynamo_backend dynamo_mode
    deepspeed_config_file deepspeed_hostfile deepspeed_inclusion_filter deepspeed_exclusion_filter
    deepspeed_multinode_launcher deepspeed_moe_layer_cls_names zero_stage offload_optimizer_device
    offload_optimizer_nvme_path offload_param_device offload_param_nvme_path zero3_init_flag
    zero3_save_16bit_model gradient_accumulation_steps gradient_clipping nproc_per_node tpu_env tpu_use_cluster
    tpu_use_sudo use_cpu hostfile include exclude
    """.split()
)
# Of accelerate's fsdp_config; the state and the cut are the engine's own here.
FSDP = frozenset(
    """
    fsdp_activation_checkpointing fsdp_activation_checkpointing_offload fsdp_auto_wrap_policy
    fsdp_backward_prefetch fsdp_backward_prefetch_policy fsdp_cpu_ram_efficient_loading
    fsdp_forward_prefetch fsdp_min_num_params fsdp_offload_params fsdp_reshard_after_forward fsdp_sharding_strategy
    fsdp_state_dict_type fsdp_sync_module_states fsdp_transformer_layer_cls_to_wrap fsdp_use_orig_params
    fsdp_version
    """.split()
)
LAUNCHER = LAUNCH_SWITCHES | LAUNCH_SINGLE | FSDP
# torchrun's and deepspeed's names for what accelerate has
LAUNCH_NAMES = {
    "nnodes": "num_machines",
    "num_nodes": "num_machines",
    "node_rank": "machine_rank",
    "master_addr": "main_process_ip",
    "master_port": "main_process_port",
    "num_gpus": "nproc_per_node",
    "hostfile": "deepspeed_hostfile",
}

# Scripts of kohya's collection: what each trains that this trainer does not, or nothing if it is the same.
SCRIPTS = {
    "sdxl_train": "",
    "sdxl_train_network": "",
    "train_network": "LoRA for Stable Diffusion 1 and 2",
    "train_db": "Stable Diffusion 1 and 2",
    "fine_tune": "Stable Diffusion 1 and 2",
    "flux_train": "Flux",
    "flux_train_network": "Flux",
    "sd3_train": "Stable Diffusion 3",
    "sd3_train_network": "Stable Diffusion 3",
    "lumina_train": "Lumina",
    "lumina_train_network": "Lumina",
    "anima_train": "Anima",
    "anima_train_network": "Anima",
    "hunyuan_image_train_network": "Hunyuan Image",
    "train_textual_inversion": "token embeddings",
    "sdxl_train_textual_inversion": "token embeddings",
    "train_controlnet": "ControlNets",
    "sdxl_train_control_net": "ControlNets",
    "sdxl_train_control_net_lllite": "ControlNets",
    "sdxl_train_leco": "concept sliders",
}

_LEFT: tuple[tuple[Why, str, str], ...] = (
    (
        "not needed",
        "loading is set up by the trainer itself",
        "max_data_loader_n_workers persistent_data_loader_workers vae_batch_size disable_mmap_load_safetensors "
        "lowram highvram text_encoder_batch_size",
    ),
    ("not needed", "the index of the pictures is kept, and brought up to date, by itself", "cache_info"),
    (
        "not needed",
        "an entry of the cache is found by what it was made from, so no wrong one can be",
        "skip_cache_check",
    ),
    (
        "not needed",
        "the engine sees to it",
        "ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph zero3_init_flag zero3_save_16bit_model "
        "fp16_master_weights_and_gradients",
    ),
    ("not needed", "attention is as lean with torch's own kernels", "mem_eff_attn diffusers_xformers split_attn"),
    ("not needed", "kohya ignores it for SDXL, too", "clip_skip no_token_padding"),
    (
        "by design",
        "TensorBoard's files are written into the run's own directory",
        "logging_dir log_prefix log_tracker_config log_config",
    ),
    ("by design", "the run id names it", "wandb_run_name"),
    (
        "by design",
        "logs of all ranks are kept in the run's directory",
        "console_log_level console_log_file console_log_simple",
    ),
    (
        "by design",
        "a run resumes by itself, at the next sample; states of kohya are not read",
        "resume skip_until_initial_step initial_step initial_epoch",
    ),
    ("by design", "the model file is always .safetensors", "use_safetensors"),
    ("by design", "the title is output.name", "metadata_title"),
    ("by design", "pictures are always drawn with DDIM", "sample_sampler"),
    (
        "not possible",
        "the model's header has no place for it here",
        "metadata_tags metadata_usage_hint metadata_thumbnail metadata_merged_from metadata_trigger_phrase "
        "metadata_preprocessor metadata_is_negative_embedding training_comment no_metadata",
    ),
    (
        "not possible",
        "nothing is uploaded; the model lies in the run's directory",
        "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token "
        "huggingface_repo_visibility save_state_to_huggingface resume_from_huggingface async_upload",
    ),
    (
        "not possible",
        "pictures are trained as they are, cut from the middle",
        "color_aug face_crop_aug_range random_crop",
    ),
    ("not possible", "masks are not read", "masked_loss alpha_mask conditioning_data_dir"),
    ("not possible", "prior preservation is not built", "reg_data_dir prior_loss_weight is_reg"),
    (
        "not possible",
        "captions come from their files alone: write it into those that lack one",
        "class_tokens",
    ),
    (
        "not possible",
        "brackets and numbers in a caption are trained as the text that they are",
        "weighted_captions",
    ),
    ("not possible", "a source has no attributes of one's own", "custom_attributes"),
    ("not possible", "captions are treated alike in all epochs", "caption_dropout_every_n_epochs"),
    ("not possible", "a LoRA counts once", "network_multiplier"),
    ("not possible", "pictures are resized in one way only", "resize_interpolation"),
    (
        "not possible",
        "the noise is drawn in one way only",
        "multires_noise_iterations multires_noise_discount "
        "noise_offset_random_strength ip_noise_gamma_random_strength adaptive_noise_scale",
    ),
    ("not possible", "no such weighting", "v_pred_like_loss"),
    ("not possible", "weights are held in fp32 or bf16", "fp8_base fp8_base_unet"),
    (
        "not possible",
        "no such way of saving memory; see engine and gradient_checkpointing",
        "cpu_offload_checkpointing blocks_to_swap offload_param_device offload_param_nvme_path "
        "offload_optimizer_nvme_path",
    ),
    (
        "not possible",
        "a LoRA starts from zero",
        "network_weights dim_from_weights base_weights base_weights_multiplier",
    ),
    ("not possible", "the norms of a LoRA are not limited", "scale_weight_norms"),
    ("not possible", "a part is trained from the first step to the last", "stop_text_encoder_training"),
    ("not possible", "data sets are described, not programmed", "dataset_class"),
    (
        "not possible",
        "no such schedule",
        "lr_scheduler_type lr_scheduler_args lr_scheduler_timescale lr_decay_steps",
    ),
    (
        "not possible",
        "the held-out share and its noise follow from the seed",
        "validation_seed max_validation_steps",
    ),
    ("not possible", "the held-out loss is told every so many steps", "validate_every_n_epochs"),
    ("not possible", "samples are drawn every so many steps, the first after that many", "sample_at_first"),
    ("not possible", "give a number of epochs", "save_n_epoch_ratio"),
    (
        "not possible",
        "it belongs to models that are not SDXL",
        "v2 learning_rate_te clip_l clip_g t5xxl ae gemma2 qwen3 model_type guidance_scale timestep_sampling "
        "sigmoid_scale discrete_flow_shift model_prediction_type training_shift t5xxl_max_token_length "
        "apply_t5_attn_mask weighting_scheme logit_mean logit_std mode_scale attn_mode",
    ),
    ("not needed", "it only shows or writes settings, without training", "debug_dataset output_config"),
    ("by design", "tokenizers come from the model folder, or from train.tokenizers", "tokenizer_cache_dir"),
)
_LEFT_LAUNCH: tuple[tuple[Why, str, str], ...] = (
    (
        "not needed",
        "clusterft writes the launcher's settings for every node",
        "compute_environment distributed_type multi_gpu main_training_function rdzv_backend rdzv_conf "
        "rdzv_endpoint rdzv_id same_network max_restarts monitor_interval role log_dir tee quiet debug module "
        "no_python standalone force_multi no_ssh deepspeed_multinode_launcher deepspeed_moe_layer_cls_names "
        "enable_cpu_affinity downcast_bf16 tpu_env tpu_use_cluster tpu_use_sudo zero3_init_flag "
        "zero3_save_16bit_model use_parallelism_config",
    ),
    ("not possible", "no such engine", "tpu use_megatron_lm"),
    (
        "not possible",
        "write what it says of stage and offload under train.engine",
        "deepspeed_config_file offload_param_device offload_param_nvme_path offload_optimizer_nvme_path",
    ),
    (
        "not possible",
        "compile is on or off",
        "dynamo_mode dynamo_use_fullgraph dynamo_use_dynamic dynamo_use_regional_compilation",
    ),
    (
        "by design",
        "the hostfile says which nodes and cards take part",
        "deepspeed_inclusion_filter deepspeed_exclusion_filter include exclude",
    ),
)
_LEFT_FSDP: tuple[Why, str] = ("not needed", "FSDP2 cuts each block and offloads nothing")
LEFT: dict[str, tuple[Why, str]] = {
    **{name: (why, reason) for why, reason, names in _LEFT for name in names.split()},
    **{LAUNCH + name: _LEFT_FSDP for name in FSDP - {"fsdp_version"}},
    **{LAUNCH + name: (why, reason) for why, reason, names in _LEFT_LAUNCH for name in names.split()},
}
# Values of flags in LEFT that ask for nothing; a file that a program wrote is full of them.
HARMLESS: dict[str, tuple[object, ...]] = {
    "adaptive_noise_scale": (0,),
    "caption_dropout_every_n_epochs": (0,),
    "dataset_repeats": (1,),
    "multires_noise_discount": (0.3,),
    "multires_noise_iterations": (0,),
    "network_multiplier": (1,),
    "offload_param_device": ("none", "None"),
    "prior_loss_weight": (1,),
    "scale_weight_norms": (0,),
    "stop_text_encoder_training": (0,),
    "token_warmup_min": (1,),
    "token_warmup_step": (0,),
    "v_pred_like_loss": (0,),
    LAUNCH + "compute_environment": ("LOCAL_MACHINE",),
    LAUNCH + "debug": ("false",),
    LAUNCH + "downcast_bf16": ("no",),
    LAUNCH + "main_training_function": ("main",),
    LAUNCH + "offload_param_device": ("none",),
    LAUNCH + "rdzv_backend": ("static",),
    LAUNCH + "same_network": ("true",),
    LAUNCH + "tpu_env": ("",),
}


def resolve(name: str) -> str:
    """A kohya flag by its name or, as argparse allows, by an unambiguous beginning of it."""
    if name in KOHYA:
        return name
    longer = [known for known in KOHYA if known.startswith(name)]
    return longer[0] if len(longer) == 1 and len(name) > 2 else name


def nearest(name: str) -> str:
    """A known flag that looks like this one, or nothing."""
    where = LAUNCHER if name.startswith(LAUNCH) else KOHYA
    found = get_close_matches(name.removeprefix(LAUNCH), sorted(where), n=1, cutoff=0.75)
    return found[0] if found else ""
