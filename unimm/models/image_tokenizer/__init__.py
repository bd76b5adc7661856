"""The image tokenizer: a convolutional VQ autoencoder and what it is made of."""
