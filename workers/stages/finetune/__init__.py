"""Stage finetune: trains the tuned checkpoint where the request asks for one."""
