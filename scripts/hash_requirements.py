"""Writes clusters/requirements.txt: what image and nodes install, with the hash of each file.

    python scripts/hash_requirements.py

pip resolves the package with the versions of constraints.txt, and tells the files that it would
take here, so it must be run on x86-64 Linux with the image's Python. torch and what only it needs
come from an index of their own in the Dockerfile and install.sh, and are left out.
"""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "clusters" / "requirements.txt"
PACKAGES = (f"{ROOT}[usb,s3,gs]", "boto3", "setuptools")  # the last builds the package
LEFT_OUT = re.compile(r"donna-ray|torch|torchvision|triton|cuda-.*|nvidia-(?!ml-py).*")
HEAD = "# Written by scripts/hash_requirements.py: files for x86-64 and Python 3.11.\n"


def main() -> None:
    if (platform.machine(), sys.version_info[:2]) != ("x86_64", (3, 11)):
        raise SystemExit("must run on x86-64 with Python 3.11, as the image does")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-"]
    command += ["--ignore-installed", "-c", str(ROOT / "constraints.txt"), *PACKAGES]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    files = sorted(map(_line, json.loads(done.stdout)["install"]))
    TARGET.write_text(HEAD + "".join(line for name, line in files if not LEFT_OUT.fullmatch(name)))


def _line(package: dict[str, dict[str, object]]) -> tuple[str, str]:
    """The name of a package, and its line."""
    about, source = package["metadata"], package["download_info"]
    name = re.sub(r"[-_.]+", "-", str(about["name"])).lower()
    archive = source.get("archive_info")
    sha256 = archive["hashes"]["sha256"] if isinstance(archive, dict) else None
    return name, f"{name}=={about['version']} --hash=sha256:{sha256}\n"


if __name__ == "__main__":
    main()
