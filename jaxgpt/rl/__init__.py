"""Practice: the model tries, a checker scores, and what scored well becomes more likely."""
