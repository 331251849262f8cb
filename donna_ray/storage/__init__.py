"""Files that outlive a crash: on any fsspec path, atomic, checked when they are read.

``artifacts`` has what a step has made, in a run folder; ``files`` one folder on any filesystem,
``refusals`` what the errors of its client mean, ``places`` where on this host is what belongs to no
run; ``records`` a store of trained modules in such a folder, and ``index`` the one file that lets a
store be listed without opening its records. On disk a record is ``<key>.safetensors``, in whose
header it stands, and perhaps ``<key>.onnx`` beside it.
"""
