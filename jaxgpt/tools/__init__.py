"""What a model may call: a calculator, Python in a process walled off from everything, a search over documents."""
