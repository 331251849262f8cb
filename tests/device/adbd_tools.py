"""The tools of the phone that `adbd.py` is; those of scripts read and write $PHONE/state."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_LOG = 'echo "${0##*/} $*" >> "$PHONE/state/log"'

TOOLS = {
    "getprop": """case "$1" in
  ro.serialno) cat "$PHONE/state/serial";;
  ro.product.manufacturer) echo Acme;;
  ro.product.model) cat "$PHONE/state/model";;
  ro.build.version.release) echo 14;;
  ro.build.fingerprint) echo acme/a/a:14/X/1:user/release-keys;;
  ro.build.version.sdk) cat "$PHONE/state/sdk";;
  ro.product.cpu.abi) cat "$PHONE/state/abi";;
esac""",
    "dumpsys": """case "$1" in
  thermalservice) echo "IsStatusOverride: false"
    echo "Thermal Status: $(cat "$PHONE/state/thermal_status")"
    echo "Cached temperatures:"
    echo "	Temperature{mValue=$(cat "$PHONE/state/heat"), mType=0, mName=AP, mStatus=0}";;
  power) echo "  mWakefulness=$(cat "$PHONE/state/wakefulness")";;
  battery) echo "  AC powered: $(cat "$PHONE/state/powered")"; echo "  USB powered: false"
    echo "  level: $(cat "$PHONE/state/level")"; echo "  temperature: 301";;
esac""",
    "settings": """[ "$1" = get ] && { cat "$PHONE/state/$3" 2>/dev/null || echo null; exit; }
echo "settings $*" >> "$PHONE/state/log"
echo "$4" > "$PHONE/state/$3\"""",
    "cmd": f"""{_LOG}
[ "$2" = set-fixed-performance-mode-enabled ] && echo "$3" > "$PHONE/state/fixed_performance\"""",
    "svc": f"""{_LOG}
[ "$*" = "power stayon true" ] && echo 7 > "$PHONE/state/stay_on_while_plugged_in\"""",
    "input": _LOG,
}


def with_a_phones_tools(folder: Path) -> str:
    """Android's shell and tools, mksh and toybox, where this host has them; else its own.

    Returns:
        The shell.
    """
    mksh, toybox = shutil.which("mksh"), shutil.which("toybox")
    if mksh is None or toybox is None:
        return "/bin/sh"
    if not folder.exists():
        folder.mkdir()
        for name in subprocess.check_output([toybox], text=True).split():
            (folder / name).symlink_to(toybox)
        (folder / "sh").symlink_to(mksh)
    return f"{folder}/sh"
