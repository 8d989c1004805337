"""The part that runs on the board: imports numpy and onnxruntime, never torch or onnx."""
