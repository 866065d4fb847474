"""GGUF files as checkpoints: header, shape, tensors and tokenizer. The header and the tokenizer load no torch."""
