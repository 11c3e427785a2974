"""The Open Inference Protocol, version 2: tensors in place of rows and predictions."""
