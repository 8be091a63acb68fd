"""The encoder, its losses, its metrics and the training loop; sees token ids and tensors, never data files."""
