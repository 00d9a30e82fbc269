"""Interop: our networks in the forms of other libraries (timm, ONNX, torch.export)."""
