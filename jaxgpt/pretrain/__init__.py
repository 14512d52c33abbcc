"""The base model: predicting the next token of documents."""
