"""Pure mathematics of layer drift: tensors in, frozen dataclasses out. Opens no file and knows no model."""
