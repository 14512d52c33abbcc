"""Conversations and their checkers, one file per task; finetuning, practice and scoring draw on them."""
