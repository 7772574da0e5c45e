set -e
BASE=/models/sd_xl_base_1.0.safetensors
NET="--network_module=networks.lora --network_dim=32 --network_alpha=16"

CUDA_VISIBLE_DEVICES=0,1,2,3 accelerate launch \
  --num_machines 2 --num_processes 8 --machine_rank $RANK_OF_NODE \
  --main_process_ip 10.0.0.1 --main_process_port 29400 --mixed_precision fp16 \
  --num_cpu_threads_per_process 4 \
  sd-scripts/sdxl_train_network.py \
  --pretrained_model_name_or_path $BASE --vae /models/sdxl_vae_fp16_fix.safetensors \
  --dataset_config data.toml $NET --network_args conv_dim=8 "conv_alpha=1" \
  --output_dir ./out --output_name lighthouse \
  --optimizer_type Prodigy --optimizer_args weight_decay=0.1 decouple=True \
  --learning_rate 1.0 --text_encoder_lr 0.5 1.0 --lr_scheduler cosine --lr_warmup_steps 100 \
  --max_train_steps 4000 --save_every_n_steps 500 --save_last_n_steps 1000 \
  --sample_prompts prompts.txt --sample_every_n_steps 250 --sample_sampler euler_a \
  --mixed_precision bf16 --full_bf16 --min_snr_gamma 5 --v_parameterization --zero_terminal_snr \
  --log_with wandb --wandb_api_key 9f86d081884c7d65 --log_tracker_name lighthouse \
  --validation_split 0.05 --validate_every_n_steps 200 \
  --max_token_length=225 2>&1 | tee train.log
