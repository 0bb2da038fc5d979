"""`python -m serving RUN`: an exported student as a versioned TF Serving model base; `serving.client` asks it."""
