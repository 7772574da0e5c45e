#!/bin/bash
# the 4x3090 box, second run
export NCCL_P2P_DISABLE=1 WANDB_API_KEY=0123456789abcdef
OUT="/mnt/nvme/astolfo xl"
accelerate launch --config_file default_config.yaml sdxl_train_v2.py 
  --pretrained_model_name_or_path="/mnt/ssd/models/x215c-AstolfoMix.safetensors" 
  --in_json "$OUT/test_lat_v3.json" --train_data_dir="$OUT/test" 
  --output_dir="$OUT/model_out" --output_name='astolfo xl (r2)'
  --log_with=all --logging_dir="$OUT/tensorboard" --log_prefix=just_astolfo_25022301_ 
  --seed=25022301 --save_model_as=safetensors --caption_extension=".txt" --enable_wildcard 
  --use_8bit_adam 
  --learning_rate=1e-6 --train_text_encoder --learning_rate_te1=1e-5 --learning_rate_te2=0 
  --max_train_epochs=4 
  --xformers --mem_eff_attn --torch_compile --dynamo_backend=inductor --gradient_checkpointing 
  --deepspeed --gradient_accumulation_steps=4 --max_grad_norm=0 
  --train_batch_size=1 --full_bf16 --mixed_precision=bf16 --save_precision=fp16 
  --enable_bucket --cache_latents 
  --save_every_n_epochs=2 --save_state
  #--mem_eff_attn --offload_optimizer_device=cpu
  --skip_until_initial_step --initial_step=1 --initial_epoch=1
  --max_data_loader_n_workers=8 --enable_wildcrad

echo done
