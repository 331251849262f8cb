"""Images and labels: the embedded digits, a user's files, or what timm reads by name.

Entry: `load_data` in `loading.py`. `files.py` lists the images of a folder or tar (`tars.py`;
`names.py` says which names are none), `sources.py` opens what has a name with timm (`columns.py`
checks Hugging Face's, `ranges.py` parts of splits, `labels.py` finds labels without the images),
`decode.py` makes RGB of any image, `copies.py` keeps that on the node's disk where it is asked for,
`images.py` transforms, `layout.py` finds splits and masks among classes, `held_out.py` says which
images are the test's (`load_test`), `fingerprint.py` whether images have changed, `reading.py`
keeps the processes that read them, `pixels.py` takes them to a device and normalises them there,
`split.py` makes batches, of all images or of a process's part; `loaders.py` has a person's own
loader in its place.

A `Split` yields batches of images (N, C, H, W), float32 and normalised, and labels (N,), int64, in
the order of `ImageData.class_names`. Its order and its augmentation are functions of seed and epoch
alone, so every worker sees the same. An image that cannot be read is left out, counted and named,
and more than a few stop the run.
"""

from donna_ray.data.held_out import (
    inputs_without_test,
    is_at_hand,
    origin_of_test,
    origin_of_validation,
    words_of_test,
)
from donna_ray.data.loading import (
    check_data,
    class_count,
    fingerprints_of,
    image_format,
    load_data,
    load_test,
    used_preprocessing,
)
from donna_ray.data.sources import check_copies
from donna_ray.data.split import ImageData, Split

__all__ = [
    "ImageData",
    "Split",
    "check_copies",
    "check_data",
    "class_count",
    "fingerprints_of",
    "image_format",
    "inputs_without_test",
    "is_at_hand",
    "load_data",
    "load_test",
    "origin_of_test",
    "origin_of_validation",
    "used_preprocessing",
    "words_of_test",
]
