accelerate launch 
    sdxl_train.py                                                                
    --pretrained_model_name_or_path="/mnt/ssd/models/x215c-AstolfoMix-24101101-6e545a3.safetensors"             
    --in_json "/mnt/Intel P4510 3/just_astolfo/meta_lat.json"    
    --train_data_dir="/mnt/Intel P4510 3/just_astolfo/kohyas_finetune"
    --output_dir="/mnt/Intel P4510 3/astolfo_xl/model_out"                                                            
    --log_with=tensorboard                                                                                                      
    --logging_dir="/mnt/Intel P4510 3/astolfo_xl/tensorboard"        
    --log_prefix=just_astolfo_25012301_                                                                                         
    --save_model_as=safetensors                                                                                                 
    --caption_extension=".txt"                                                                                                  
    --use_8bit_adam                                                                                                             
    --train_batch_size=1 --learning_rate=5e-6 --max_train_epochs=10                                                             
    --train_text_encoder --learning_rate_te1=3e-6 --learning_rate_te2=3e-6
    --xformers --diffusers_xformers --gradient_checkpointing                                                                    
    --full_bf16 --mixed_precision=bf16 --save_precision=fp16                                                                    
    --enable_bucket --cache_latents                                                                                             
    --save_every_n_epochs=1    
