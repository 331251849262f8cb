"""The RSA key by which phones know this host."""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adb_shell.auth.keygen import keygen
from adb_shell.auth.sign_cryptography import CryptographySigner

__all__ = ["default_key_path", "fingerprint", "load_signer"]

_KEY_MODE = 0o600


def default_key_path() -> Path:
    """The key of the user's `adb`, which their phones already know; else one of our own."""
    known = Path.home() / ".android" / "adbkey"
    if known.exists() and known.with_name("adbkey.pub").exists():
        return known
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "device-farm" / "adbkey"


def load_signer(path: Path) -> CryptographySigner:
    """Loads a key; makes it, with mode 0600 from the start, if there is none.

    One that others may read is set to 0600, but on a file system that is mounted read-only, such as
    a Kubernetes secret: who may read it there is said by whoever mounts it.

    Raises:
        OSError: The key cannot be read or made.
        ValueError: The file is no private key.
    """
    if not path.exists():
        _make(path)
    if path.stat().st_mode & 0o077:
        try:
            path.chmod(_KEY_MODE)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
    return CryptographySigner(str(path))


def fingerprint(signer: CryptographySigner) -> str:
    """The key's fingerprint as the phone's dialog shows it: MD5, as AA:BB:…"""
    blob = base64.b64decode(signer.GetPublicKey().split()[0])
    digest = hashlib.md5(blob, usedforsecurity=False).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def _make(path: Path) -> None:
    """Makes the pair aside, then moves it into place; of two makers at once the first wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(path.parent), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        if path.exists():
            return
        made = Path(folder) / path.name  # in a folder of mode 0700
        made.touch(_KEY_MODE)
        keygen(str(made))
        for suffix in (".pub", ""):
            os.replace(made.with_name(made.name + suffix), path.with_name(path.name + suffix))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process is in here for the same folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
