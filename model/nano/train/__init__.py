"""How the default model is trained: chunks of lessons, the training forward, the loop."""
