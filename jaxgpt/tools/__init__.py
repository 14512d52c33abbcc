"""What a model may call: a calculator, a search over documents."""
