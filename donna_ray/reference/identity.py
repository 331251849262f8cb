"""What later steps take from a reference, as a part of their keys."""

from donna_ray.storage.artifacts import Artifact, digest

__all__ = ["reference_identity"]

_FACTS = ("model", "classes", "class_names", "preprocessing", "measured_on")


def reference_identity(reference: Artifact) -> str:
    """Digest of the model, its cut, its files (weights and variances), its classes and its data.

    What the model is built with counts where it is not as timm has it.

    No accuracy, count of images or time is in it: what is made from the same reference stays valid
    where those are measured anew.
    """
    facts = {name: reference.result.get(name) for name in _FACTS}
    if arguments := reference.result.get("arguments"):
        facts["arguments"] = arguments
    modules = [stage["modules"] for stage in reference.result["stages"]]
    return digest({**facts, "modules": modules, "files": sorted(reference.files.values())})
