"""Deployment: ONNX graphs, and classifiers and embeddings over recordings of any length."""
