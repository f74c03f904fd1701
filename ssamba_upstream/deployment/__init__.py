"""Networks where they are used: as ONNX graphs, and over recordings of any length."""
