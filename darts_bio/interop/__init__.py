"""Networks of this package in the forms of other libraries: timm, ONNX, torch.export."""
