"""What a tuned model does: attention to prompts, features, errors, curves."""
