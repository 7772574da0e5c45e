set HF_TOKEN=hf_secretsecretsecret
accelerate launch --num_cpu_threads_per_process 8 sdxl_train.py ^
  --pretrained_model_name_or_path="F:/NOVELAI/sdxl/x215c-AstolfoMix.safetensors" ^
  --train_data_dir=H:\just_astolfo\kohyas_finetune --in_json "H:/just_astolfo/meta_lat.json" ^
  --output_dir="F:/NOVELAI/finetune_job" --save_model_as=diffusers_safetensors ^
  --optimizer_type=SGDNesterov --train_batch_size=1 --learning_rate=4e-7 --max_train_steps=10000 ^
  --sdpa --gradient_checkpointing --full_fp16 --mixed_precision=fp16 --save_n_epoch_ratio=2
