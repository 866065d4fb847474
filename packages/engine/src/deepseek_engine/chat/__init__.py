"""Conversations to prompts: chat templates and the encoders of models that ship none."""
