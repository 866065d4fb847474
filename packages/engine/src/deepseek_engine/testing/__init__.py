"""What tests need: tiny checkpoints, and a runner that computes no model."""
