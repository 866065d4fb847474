"""LoRA (arXiv 2106.09685): low-rank changes to a model's linear layers, many of them served from one base model."""
