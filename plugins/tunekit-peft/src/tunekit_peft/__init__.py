"""LoRA through PEFT, with a proof that the merged model is the trained one."""
