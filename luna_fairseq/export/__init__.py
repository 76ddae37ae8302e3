"""Models outside of fairseq: folders of plain weights, and graphs that other programs run.

``folder`` is what every such folder is and holds, ``weights`` safetensors, ``graphs`` what is traced, ``formats`` the
files of ``torch.export`` and ONNX.
"""
