"""The assistant: supervised finetuning on conversations."""
