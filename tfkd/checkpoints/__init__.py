"""Other people's weights: Hugging Face and KerasHub checkpoints of the BERT family, read into our encoder and head."""
