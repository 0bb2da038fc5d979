"""From examples to batches: sources, tokenizer, token store, input pipeline."""
