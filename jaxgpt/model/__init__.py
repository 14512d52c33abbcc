"""Tokens -> logits: one transformer, of which GPT-2 and Llama 3 are settings."""
