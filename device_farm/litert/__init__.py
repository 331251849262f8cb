"""ONNX models as LiteRT's `.tflite` files, for phones and for `donna export`.

Enter by `conversion.py`: it converts a model and checks the result in LiteRT, by `running.py`.
`reading.py` makes a `graph.py` of ONNX, which has the words of refusals, too; `activations.py` one
node of what is one for LiteRT; `translation.py` keeps which tensor of the new model is which of the
old one, in which layout and precision; `pointwise.py`, `windows.py`, `norms.py` and `shapes.py`
write operators; `writer.py` writes the file.

Own code: onnx2tf pins other versions of ONNX and takes a minute a model, and litert-torch needs
torch. This needs `ai-edge-litert` alone (the extra `litert`; `extra.py` sees whether it is here),
which has the file's schema. The input and the output are as in ONNX, so images stay (N, C, H, W);
between them the layout is LiteRT's, channels last. QDQ models keep their scales, so the integers
are those of ONNX.
"""
