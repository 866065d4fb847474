"""From any checkpoint that the engine reads to a folder with INT8 weights: `deepseek-server quantize`."""
