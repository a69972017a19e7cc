"""The one predict path: frame → encode → pad → program over graphs → post → decode. NumPy, Polars and ONNX Runtime; no torch needed."""
