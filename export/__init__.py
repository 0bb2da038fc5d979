"""`python -m export RUN`: a finished run's student as SavedModel, TFLite and ONNX, each proven against the student."""
